"""History: recent reported values, when asked to keep them. Loaded only then.

`points` decides what is worth keeping, `file` is the ring on disk, `history` the shell that listens and writes.
"""

from edgecore.history.history import History, open_history

__all__ = ["History", "open_history"]
