"""The node that this edge core is, in Kubernetes: its Node object, its status, its Lease. It runs no pods."""

from edgecore.edged.edged import Edged
from edgecore.edged.timing import duration_s

__all__ = ["Edged", "duration_s"]
