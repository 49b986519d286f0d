"""When a fault that edge core sees is shown: after a grace in which it may go by itself. No I/O and no clock."""

from __future__ import annotations

from collections.abc import Mapping

from dmi import DeviceId
from edgecore.devicetwin.merge import Fault

__all__ = ["FaultClock"]


class FaultClock:
    """`shown`: what the store already has."""

    def __init__(self, shown: Mapping[DeviceId, Fault]) -> None:
        self._shown = dict(shown)
        self._waiting: dict[DeviceId, tuple[float, Fault]] = {}

    def see(self, device: DeviceId, fault: Fault | None, *, grace_s: float, now: float) -> bool:
        """Note what is wrong with a device at this moment. Whether a change is to be written at once: the end of a
        fault is, and so is one fault in place of another.
        """
        shown = self._shown.get(device)
        if fault == shown:
            self._waiting.pop(device, None)
            return False
        if fault is None or shown is not None or grace_s <= 0:
            self._waiting.pop(device, None)
            if fault is None:
                del self._shown[device]
            else:
                self._shown[device] = fault
            return True
        due, _ = self._waiting.get(device, (now + grace_s, fault))
        self._waiting[device] = (min(due, now + grace_s), fault)
        return False

    def shown(self, device: DeviceId) -> Fault | None:
        return self._shown.get(device)

    def all_shown(self) -> list[DeviceId]:
        return list(self._shown)

    def next_due(self) -> float | None:
        return min((due for due, _ in self._waiting.values()), default=None)

    def take_due(self, now: float) -> dict[DeviceId, Fault]:
        """Faults that outlived their grace, now shown."""
        due = {device: fault for device, (at, fault) in self._waiting.items() if at <= now}
        for device in due:
            del self._waiting[device]
        self._shown.update(due)
        return due

    def forget(self, device: DeviceId) -> None:
        self._shown.pop(device, None)
        self._waiting.pop(device, None)
