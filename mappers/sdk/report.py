"""What one device reports: its twins when something about them is new or to be confirmed, and its state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from dmi.twins import Twin
from dmi.types import DeviceId, DeviceState
from mappers.sdk.connection import Connection
from mappers.sdk.declaration import Declaration
from mappers.sdk.state import StateReporter
from mappers.sdk.tracking import Tracker

__all__ = ["Reporter", "Reports"]


class Reports(Protocol):
    """Where a device's reports go; never waits."""

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin], *, news: bool = True) -> None:
        """`news`: something changed; False: it only confirms what was reported before."""

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None: ...


class _Nowhere:
    """Where the reports of a device go that does not run here any more."""

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin], *, news: bool = True) -> None: ...

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None: ...


class Reporter:
    """Reports for one device. Owns its state."""

    __slots__ = ("_connection", "_device_id", "_reports", "_trackers", "broken", "state")

    def __init__(
        self, device_id: DeviceId, connection: Connection, trackers: Mapping[str, Tracker], reports: Reports
    ) -> None:
        self._device_id = device_id
        self._connection = connection
        self._trackers = trackers
        self._reports: Reports = reports
        self.state = StateReporter(device_id, lambda state, reason: self._reports.put_state(device_id, state, reason))
        self.broken: Mapping[str, Twin] = {}
        """Properties that cannot run as declared: bad, with the reason and the last value there was."""

    def close(self) -> None:
        """The device does not run here any more: nothing is said about it from now on, whatever still ends."""
        self._reports = _Nowhere()
        self.state.close()

    def flush(self) -> None:
        """Report what changed, and what is to be confirmed."""
        twins: list[Twin] = []
        news = False
        now = asyncio.get_running_loop().time()
        for tracker in self._trackers.values():
            if tracker.dirty or tracker.confirming:
                news |= tracker.dirty or tracker.value != tracker.told
                if tracker.declared.report_to_cloud:
                    twins.append(tracker.tell(now))
                else:
                    tracker.dirty = tracker.confirming = False
        if twins:
            self._reports.put_twins(self._device_id, twins, news=news)

    def report_broken(self, declaration: Declaration) -> None:
        shown = {p.name for p in declaration.device.properties if p.report_to_cloud}
        if twins := [t for name, t in self.broken.items() if name in shown]:
            self._reports.put_twins(self._device_id, twins)

    def report_all(self, declaration: Declaration) -> None:
        """Report everything current, as after a registration."""
        for tracker in self._trackers.values():
            tracker.dirty |= tracker.has_report
        self.report_broken(declaration)
        self.flush()
        self.state.report()

    def refresh_state(self, declaration: Declaration, remarks: Sequence[str]) -> None:
        """Work out the state anew. `remarks` are shown with it and do not make it worse: a sink that cannot work
        leaves the device as well as it is."""
        connection = self._connection
        if problem := declaration.problem or connection.config_problem:
            self.state.set("unhealthy", problem)
        elif connection.link is None:
            if connection.reason:
                self.state.set("unhealthy" if connection.driver_failed else "offline", connection.reason)
        elif connection.silence and not any(t.quality == "good" for t in self._trackers.values()):
            self.state.set("offline", connection.silence)
        elif connection.answered or not self._trackers:
            rejected = (
                f"property {t.name}: {t.reason}" for t in self._trackers.values() if t.rejected and t.quality == "bad"
            )
            reason = declaration.reason() or next(rejected, "")
            self.state.set("unhealthy" if reason else "online", "; ".join([*([reason] if reason else []), *remarks]))
