"""Whether an edge is connected to CloudHub, as the kernel sees it: the demo takes no part in the channel."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["count_established"]

_ESTABLISHED: Final = "01"


def count_established(port: int, table: Path = Path("/proc/net/tcp")) -> int:
    """TCP connections that stand on a local IPv4 port (proc(5))."""
    rows = (line.split() for line in table.read_text().splitlines()[1:])
    return sum(1 for row in rows if int(row[1].partition(":")[2], 16) == port and row[3] == _ESTABLISHED)
