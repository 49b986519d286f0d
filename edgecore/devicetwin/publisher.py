"""Tells this node's apps, history and topic rules what was committed; where nobody listens it costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dmi import DeviceId, NodeName
from edgecore.bus import Bus, MqttOut, StateShown, TwinsGone, TwinsReported
from edgecore.devicetwin.document import TwinChange
from edgecore.devicetwin.mqtt_payloads import (
    delta_of,
    document_of,
    membership_updated,
    reported_result,
    state_result,
    update_result,
)
from edgecore.store import StateRow, TwinRow

__all__ = ["TwinPublisher"]

Rows = Mapping[str, TwinRow]


class TwinPublisher:
    """Call it right after a commit, in the order of the commits."""

    def __init__(self, bus: Bus, *, node: NodeName) -> None:
        self._bus = bus
        self._node = node

    def is_heard(self) -> bool:
        """Whether `publish_update` needs the rows; who does not have them at hand need not read them otherwise."""
        return self._bus.is_heard(MqttOut) or self._bus.is_heard(TwinsReported)

    def publish_update(self, device: DeviceId, before: Rows, after: Rows, event_id: str = "") -> None:
        """What a mapper's report changed. `before` is all of the device's rows; in `after`, a row that is not the
        same object has changed, and one that is not there has not.
        """
        changed = [name for name, row in after.items() if before.get(name) is not row]
        if not changed:
            return
        rows = {**before, **after}
        if self._bus.is_heard(MqttOut):
            self._bus.tell(reported_result(device, changed, rows, event_id))
            self._tell_document(device, changed, before, rows, event_id)
        self._tell_reported(device, changed, rows)

    def answer_update(
        self, device: DeviceId, changes: Mapping[str, TwinChange], before: Rows, changed: Rows, event_id: str
    ) -> None:
        """As upstream an app hears what its twins are now also when nothing changed."""
        rows = {**before, **changed}
        if self._bus.is_heard(MqttOut):
            self._bus.tell(update_result(device, changes, rows, event_id))
            self._tell_document(device, list(changed), before, rows, event_id)
        self._tell_reported(device, list(changed), rows)

    def publish_sync(self, device: DeviceId, before: Rows, changed: Rows, event_id: str) -> None:
        """A sync from the cloud has no result, only documents."""
        rows = {**before, **changed}
        names = [name for name, row in changed.items() if name not in before or row.twin != before[name].twin]
        if self._bus.is_heard(MqttOut):
            self._tell_document(device, names, before, rows, event_id)
        self._tell_reported(device, names, rows)

    def publish_state(self, device: DeviceId, row: StateRow, event_id: str = "") -> None:
        if self._bus.is_heard(MqttOut):
            self._bus.tell(state_result(device, row, event_id))
        self._bus.tell(StateShown(device, row.since_ms))

    def publish_added(self, device: DeviceId) -> None:
        """A device that is new on this node."""
        if self._bus.is_heard(MqttOut):
            self._bus.tell(membership_updated(self._node, added=device))

    def publish_removed(self, device: DeviceId) -> None:
        if self._bus.is_heard(MqttOut):
            self._bus.tell(membership_updated(self._node, removed=device))

    def publish_gone(self, device: DeviceId, names: Iterable[str]) -> None:
        """Properties whose rows were dropped."""
        self._bus.tell(TwinsGone(device, tuple(names)))

    def _tell_document(self, device: DeviceId, names: list[str], before: Rows, rows: Rows, event_id: str) -> None:
        if names:
            self._bus.tell(document_of(device, names, before, rows, event_id))
        delta = delta_of(device, rows)
        if delta is not None:
            self._bus.tell(delta)

    def _tell_reported(self, device: DeviceId, names: list[str], rows: Rows) -> None:
        if names and self._bus.is_heard(TwinsReported):
            twins = tuple(rows[name].twin for name in names if not rows[name].deleted)
            if twins:
                self._bus.tell(TwinsReported(device, twins))
        if gone := [name for name in names if rows[name].deleted]:
            self.publish_gone(device, gone)
