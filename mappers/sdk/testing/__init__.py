"""Test kit for mappers: an edge core that records, a mapper in three lines, time that jumps, links that break.

The conformance suite is `mappers.sdk.testing.conformance`, which alone needs pytest. `docs/testing-mappers.md` shows
how it all fits together.
"""

from __future__ import annotations

from mappers.sdk.testing.clock import VirtualClock, virtual_time
from mappers.sdk.testing.edgecore import FakeEdgeCore
from mappers.sdk.testing.faults import Faults
from mappers.sdk.testing.faulty import FaultyDriver
from mappers.sdk.testing.harness import eventually, running
from mappers.sdk.testing.leaks import no_leaks
from mappers.sdk.testing.proxies import PtyFaultProxy, TcpFaultProxy, UdpFaultProxy
from mappers.sdk.testing.watched import WatchedDriver

__all__ = [
    "FakeEdgeCore",
    "Faults",
    "FaultyDriver",
    "PtyFaultProxy",
    "TcpFaultProxy",
    "UdpFaultProxy",
    "VirtualClock",
    "WatchedDriver",
    "eventually",
    "no_leaks",
    "running",
    "virtual_time",
]
