"""MetaManager: keeps the Kubernetes objects that the cloud sends, acknowledges them, and tells who needs to know."""

from edgecore.metamanager.manager import MetaManager

__all__ = ["MetaManager"]
