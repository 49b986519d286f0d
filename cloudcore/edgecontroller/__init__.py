"""The edge controller: nodes register, patch, renew and ask through it, and get their pods with what these refer to."""

from cloudcore.edgecontroller.controller import EdgeController, EdgeSettings
from cloudcore.edgecontroller.downstream import Records

__all__ = ["EdgeController", "EdgeSettings", "Records"]
