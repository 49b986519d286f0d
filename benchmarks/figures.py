"""How a figure is printed and taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["cpu_seconds", "figure", "percentile", "rss_mib"]


def figure(name: str, value: float, unit: str) -> None:
    print(f"{name} {value:.4g} {unit}", flush=True)


def percentile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def rss_mib(pid: int) -> float:
    """VmRSS of /proc/PID/status in MiB, as ps and top show it: resident pages, those of shared libraries included."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return kilobytes / 1024


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used (proc(5), stat fields 14 and 15, in ticks of 1/100 s)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
