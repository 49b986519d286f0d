"""Where to ask. Data only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from kubetwin.kubectl import Kubectl

__all__ = ["API_TIMEOUT_S", "DEFAULT_SOCKET", "Ends"]

API_TIMEOUT_S: Final = 5
"""Of one request, in whole seconds: an API that takes longer is as good as away."""
DEFAULT_SOCKET: Final = Path("/etc/kubeedge/edgecore.sock")


class Ends(Struct, frozen=True):
    """The two ends of the path, as far as they are to be asked."""

    kubectl: Kubectl | None
    """None: the Kubernetes API is not to be asked."""
    edge: Path | None = None
    """Edge core's socket; None: the usual one, if it is there."""
    ask_edge: bool = True
