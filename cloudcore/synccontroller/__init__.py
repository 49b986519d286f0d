"""What each node has acknowledged, kept in the API, and what brings a node back to what the API says."""

from cloudcore.synccontroller.controller import Reconciled, SyncController, SyncSettings
from cloudcore.synccontroller.records import Records

__all__ = ["Reconciled", "Records", "SyncController", "SyncSettings"]
