"""How this node gets its certificate, and a new one in time: first with a join token, then with the old one.

What asks the cloud is a process of its own, `edgecore.joining.child`: certificates and an HTTP client cost 20 MB, and
are needed for a second a year.
"""

from edgecore.joining.identity import Identity, NodeFiles, NoIdentity, read_identity
from edgecore.joining.joining import Joining

__all__ = ["Identity", "Joining", "NoIdentity", "NodeFiles", "read_identity"]
