"""Which kubectl to call."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["kubectl_path"]


def kubectl_path() -> str:
    """The kubectl that came with the `demo` extra, beside this Python; else whatever PATH has."""
    bundled = Path(sys.executable).parent / "kubectl"
    return str(bundled) if bundled.exists() else "kubectl"
