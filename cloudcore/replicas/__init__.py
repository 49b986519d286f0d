"""Several cloud cores that serve the same nodes: who owns a node, who leads, and who may write what."""

from cloudcore.replicas.replicas import Replicas
from cloudcore.replicas.settings import ReplicaSettings, ReplicaStatus, replica_name

__all__ = ["ReplicaSettings", "ReplicaStatus", "Replicas", "replica_name"]
