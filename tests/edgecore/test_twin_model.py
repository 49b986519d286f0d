"""The document model against a simple reference: any order of updates, reports, syncs, deletions and confirmations."""

import dataclasses
import sqlite3

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dmi import Desired, DeviceId, Reported, Twin
from edgecore.devicetwin.document import CONFIRM_MS, Refused, TwinChange, Version, cloud_updated, update
from edgecore.devicetwin.merge import merge_twins
from edgecore.store import TwinRow, acknowledge_twins, get_twins, keep_properties, put_twins
from edgecore.store.migrations import migrate

NOW = 1_700_000_000_000


def versions(row: TwinRow) -> tuple[tuple[int, int], tuple[int, int]]:
    return (row.desired_cloud, row.desired_edge), (row.reported_cloud, row.reported_edge)


@dataclasses.dataclass
class _Known:
    """One property in the reference: plain values, changed in place."""

    expected: str | None = None
    actual: str | None = None
    expected_at: int = 0
    actual_at: int = 0
    expected_version: tuple[int, int] = (0, 0)
    actual_version: tuple[int, int] = (0, 0)
    optional: bool = True
    there: bool = True
    cloud: tuple[str | None, str | None] | None = None
    """What the cloud has; None: it does not know the property."""

    ordered: bool = False
    """What is expected is the mapper's order."""
    order: str | None = None
    """That of a deleted twin."""

    def clear(self, now: int) -> None:
        self.order = self.expected if self.ordered else None
        self.expected = self.actual = None
        self.expected_at, self.actual_at = max(now, self.expected_at), max(now, self.actual_at)
        if self.order is not None:
            self.expected_at = max(self.expected_at, self.actual_at)
        self.there = False

    def revive(self) -> None:
        if not self.there:
            self.there, self.expected, self.actual_at = True, self.order, 0
            if self.order is None:
                self.expected_at, self.ordered = 0, False


DEVICE = DeviceId("n/d")
NAMES = st.sampled_from(["p", "q", "s"])
VALUES = st.none() | st.sampled_from(["1", "2", "", "x y"])
COUNTS = st.integers(0, 4)


class TwinsOfADevice(RuleBasedStateMachine):
    """Apps, a mapper, a cloud that syncs, confirmations and restarts, in any order, over a real store."""

    @initialize()
    def start(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.db)
        self.now = NOW
        self.types = {"p": "string", "q": "string", "s": "string"}
        self.known: dict[str, _Known] = {}
        self.orders: dict[str, Desired] = {}
        """What the mapper repeats with each report."""

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.send_and_confirm()
            for known in self.known.values():
                assert known.cloud is None or known.cloud == (known.expected, known.actual)
            self.db.close()

    def stored(self) -> dict[str, TwinRow]:
        return get_twins(self.db, DEVICE)

    @rule(
        names=st.lists(NAMES, min_size=1, max_size=2, unique=True),
        expected=VALUES,
        actual=VALUES,
        optional=st.none() | st.booleans(),
    )
    def app_updates(self, names: list[str], expected: str | None, actual: str | None, optional: bool | None) -> None:
        self.now += 1
        change = TwinChange(expected, actual, optional)
        rows = update(self.stored(), dict.fromkeys(names, change), self.types, now_ms=self.now)
        put_twins(self.db, DEVICE, rows.values())
        for name in names:
            self.expect_written(name, expected, actual, optional)

    def expect_written(self, name: str, expected: str | None, actual: str | None, optional: bool | None) -> None:
        known = self.known.get(name)
        if known is None:
            if expected is None and actual is None and optional is not False:
                return
            known = self.known[name] = _Known()
        if not known.there and expected is None and actual is None:
            return
        known.revive()
        if expected is not None and (expected != known.expected):
            known.expected, known.expected_at, known.ordered = expected, self.now, False
            known.expected_version = (known.expected_version[0], known.expected_version[1] + 1)
        if actual is not None and (actual != known.actual or self.now - known.actual_at >= CONFIRM_MS):
            known.actual, known.actual_at = actual, self.now
            known.actual_version = (known.actual_version[0], known.actual_version[1] + 1)
        if optional is False:
            known.optional = False

    @rule(name=NAMES)
    def app_deletes(self, name: str) -> None:
        known = self.known.get(name)
        try:
            rows = update(self.stored(), {name: TwinChange(deleted=True)}, self.types, now_ms=self.now)
        except Refused:
            assert known is not None
            assert known.there
            assert not known.optional
            return
        put_twins(self.db, DEVICE, rows.values())
        if known is not None and known.there:
            known.clear(self.now)
            for side in ("expected_version", "actual_version"):
                cloud, edge = getattr(known, side)
                setattr(known, side, (cloud, edge + 1) if (cloud, edge) != (0, 0) else (0, 0))

    @rule(name=NAMES, value=st.sampled_from(["1", "2"]), age=st.integers(0, 2))
    def mapper_reports(self, name: str, value: str, age: int) -> None:
        self.now += 1
        at = self.now - age
        self.expect_reported(name, value, at)

    @rule(name=NAMES, value=st.sampled_from(["1", "2", "9"]))
    def mapper_has_a_new_order(self, name: str, value: str) -> None:
        self.now += 1
        self.orders[name] = Desired(value, "string", self.now)
        self.expect_reported(name, value, self.now)

    def expect_reported(self, name: str, value: str, at: int) -> None:
        order = self.orders.get(name, Desired())
        report = Twin(name, Reported(value, "string", at), order)
        put_twins(self.db, DEVICE, merge_twins(self.stored(), [report], self.types, now_ms=self.now))
        known = self.known.setdefault(name, _Known())
        is_read = at >= known.actual_at and (value, at) != (known.actual, known.actual_at)
        wished = (known.expected if known.there else known.order, known.expected_at)
        is_wished = bool(order.value) and order.updated_ms >= known.expected_at
        is_wished = is_wished and (order.value, order.updated_ms) != wished
        if is_read or is_wished:
            known.revive()
        if is_read:
            known.actual, known.actual_at = value, at
            known.actual_version = (known.actual_version[0], known.actual_version[1] + 1)
        if is_wished:
            known.expected, known.expected_at, known.ordered = order.value, order.updated_ms, True
            known.expected_version = (known.expected_version[0], known.expected_version[1] + 1)

    @rule(name=NAMES, value=st.sampled_from(["1", "9"]), cloud=COUNTS, edge=COUNTS)
    def cloud_syncs(self, name: str, value: str, cloud: int, edge: int) -> None:
        self.now += 1
        change = TwinChange(expected=value, expected_version=Version(cloud, edge))
        rows = cloud_updated(self.stored(), {name: change}, self.types, now_ms=self.now)
        put_twins(self.db, DEVICE, rows.values())
        known = self.known.get(name)
        if known is not None and (cloud < known.expected_version[0] or edge < known.expected_version[1]):
            known.cloud = None  # it is to be told
            assert rows[name].dirty
            return
        known = self.known.setdefault(name, _Known())
        known.revive()
        if value != known.expected:
            known.expected, known.expected_at, known.ordered = value, self.now, False
        known.expected_version = (cloud, edge)
        if known.cloud is not None:
            known.cloud = (value, known.cloud[1])

    @rule()
    def send_and_confirm(self) -> None:
        rows = get_twins(self.db, DEVICE, dirty=True)
        for name, row in rows.items():
            self.known[name].cloud = (
                row.twin.desired.value if row.twin.desired.updated_ms and not row.deleted else None,
                row.twin.reported.value if row.twin.reported.collected_ms and not row.deleted else None,
            )
        acknowledge_twins(self.db, DEVICE, {name: row.version for name, row in rows.items()})

    @rule(name=NAMES)
    def the_device_loses_a_property(self, name: str) -> None:
        keep_properties(self.db, DEVICE, self.types.keys() - {name})
        self.known.pop(name, None)

    @rule()
    def time_passes(self) -> None:
        self.now += CONFIRM_MS

    @invariant()
    def the_store_is_the_reference(self) -> None:
        if not hasattr(self, "db"):
            return
        rows = self.stored()
        assert rows.keys() == self.known.keys()
        for name, known in self.known.items():
            row = rows[name]
            desired, reported = row.twin.desired, row.twin.reported
            assert (desired.value if desired.updated_ms and not row.deleted else None, desired.updated_ms) == (
                known.expected,
                known.expected_at,
            )
            assert (reported.value if reported.collected_ms and not row.deleted else None, reported.collected_ms) == (
                known.actual,
                known.actual_at,
            )
            assert versions(row) == (known.expected_version, known.actual_version)
            assert (row.optional, row.deleted) == (known.optional, not known.there)


TestTwinsOfADevice = TwinsOfADevice.TestCase
