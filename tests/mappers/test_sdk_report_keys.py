"""The runtime's own visitor keys, the same for every protocol: when is a property reported?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.types import DeviceModel, DeviceProperty, ModelProperty, Scalar
from mappers.sdk import ConfigError, ConversionError, Property, ReadResult, Value
from mappers.sdk.declaration import check_driver, declare
from mappers.sdk.fleet import Fleet
from mappers.sdk.keys import ReportKeys
from mappers.sdk.tracking import Tracker
from mappers.sdk.uplink import Uplink
from tests.mappers.mapper_world import MODEL, MemoryVisitor, prop
from tests.mappers.runner_world import AnyVisitor, LinkDriver, Recorder, any_device, running_device
from tests.mappers.test_sdk_uplink import Peer


class Cells:
    """A link whose properties are whatever `values` says."""

    def __init__(self, **values: Value) -> None:
        self.values = values
        self.reads = 0

    async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
        self.reads += 1
        return {p.name: self.values[p.name] for p in properties}


DRIVER = LinkDriver(Cells)


def keys_of(**visitor: Scalar) -> ReportKeys:
    declared = declare(DRIVER, any_device(prop("flow", **visitor)), MODEL)  # type: ignore[arg-type]  # visitor keys only
    assert not declared.errors()
    assert not declared.warnings
    return declared.keys.get("flow", ReportKeys())


def test_the_keys_are_read_beside_the_drivers_own() -> None:
    assert keys_of(cell="a") == ReportKeys()
    assert keys_of(cell="a", deadband=0.5, heartbeat=5000, reportOnChange=False) == ReportKeys(0.5, 5000, False)
    assert keys_of(DeadBand="0.5", HEARTBEAT="5000", reportonchange="false") == ReportKeys(0.5, 5000, False)


@pytest.mark.parametrize(
    ("name", "visitor", "says"),
    (
        ("flow", {"deadband": -1}, "visitors.configData.deadband: -1 is not accepted"),
        ("flow", {"deadband": "much"}, "visitors.configData.deadband: 'much' is not accepted"),
        ("label", {"deadband": 1}, "visitors.configData.deadband: is for numbers, and the property is STRING"),
        ("flow", {"heartbeat": -5}, "visitors.configData.heartbeat: -5 is not accepted"),
        ("flow", {"reportOnChange": "perhaps"}, "visitors.configData.reportOnChange: 'perhaps' is not accepted"),
    ),
)
def test_a_wrong_key_is_refused_with_its_path(name: str, visitor: dict[str, Scalar], says: str) -> None:
    declared = declare(DRIVER, any_device(prop(name, **visitor), prop("level")), MODEL)  # type: ignore[arg-type]  # as above
    assert [e.startswith(f"spec.properties[0].{says}") for e in declared.errors()] == [True]
    assert set(declared.properties) == {"level"}


def test_an_unknown_key_is_still_warned_about() -> None:
    declared = declare(DRIVER, any_device(prop("flow", deadbnad=1)), MODEL)
    assert declared.warnings == ("spec.properties[0].visitors.configData.deadbnad: is not used by any",)


def test_a_driver_that_takes_a_key_of_the_runtime_is_refused() -> None:
    class Visitor(AnyVisitor, frozen=True):
        heart_beat: int = msgspec.field(default=0, name="Heartbeat")

    class Greedy(LinkDriver):
        visitor_config = Visitor

    with pytest.raises(
        ConfigError, match=r"Greedy\.visitor_config\.heartbeat: is a visitor key that the runtime reads"
    ):
        check_driver(Greedy(Cells))
    with pytest.raises(ConfigError):
        Fleet(Greedy(Cells), Uplink(Peer()))
    check_driver(DRIVER)


# what the keys do


def is_dirty(t: Tracker) -> bool:
    return t.dirty


def tracker(type_: str = "FLOAT", *, report_ms: int = 0, **keys: object) -> Tracker:
    model = ModelProperty("p", type_)  # type: ignore[arg-type]  # a property type
    declared = DeviceProperty("p", report_to_cloud=True, report_cycle_ms=report_ms)
    return Tracker(declared, Property("p", MemoryVisitor("p"), model), ReportKeys(**keys))  # type: ignore[arg-type]


@given(st.floats(0.125, 50), st.lists(st.floats(-1000, 1000), min_size=1, max_size=30))
def test_what_is_reported_is_never_further_from_the_value_than_the_deadband(band: float, values: list[float]) -> None:
    t = tracker("DOUBLE", deadband=band)
    reported = 0
    for at, value in enumerate(values):
        t.seen(value, 1000 + at, float(at))
        if is_dirty(t):
            before = t.told
            t.tell(float(at))
            reported += 1
            assert before is None or abs(float(before) - value) > band
        assert t.told is not None
        assert abs(float(t.told) - float(t.value)) <= band
    assert reported >= 1


def test_drift_is_measured_from_what_was_reported() -> None:
    t = tracker(deadband=1)
    dirty = []
    for value in (10.0, 10.5, 11.0, 11.25, 11.5, 9.75):
        t.seen(value, 1000, 1.0)
        dirty.append(t.dirty)
        if t.dirty:
            t.tell(1.0)
    assert dirty == [True, False, False, True, False, True]


def test_a_change_of_quality_is_reported_inside_the_deadband_and_with_its_newest_value() -> None:
    for keys in ({"deadband": 100}, {"report_on_change": False}):
        t = tracker(**keys)
        t.seen(1.0, 1000, 1.0)
        t.tell(1.0)
        t.seen(2.0, 2000, 2.0)
        assert not is_dirty(t)
        t.miss("no reply")
        assert is_dirty(t)
        assert (t.tell(3.0).reported.value, t.told) == ("2", "2")
        t.seen(2.5, 4000, 4.0)
        assert t.dirty


def test_a_heartbeat_confirms_and_goes_before_the_report_cycle() -> None:
    t = tracker(heartbeat=5000, report_ms=60_000)
    t.tell(100.0)
    assert (t.confirm_due(104.4), t.confirm_due(104.6)) == (False, True)


def test_without_reports_on_change_the_report_cycle_alone_decides() -> None:
    t = tracker(report_on_change=False, report_ms=3000, heartbeat=100)
    t.seen(1.0, 1000, 1.0)
    assert t.dirty  # the first
    t.tell(1.0)
    t.seen(2.0, 2000, 2.0)
    assert (t.dirty, t.confirm_due(3.0), t.confirm_due(3.6)) == (False, False, True)
    assert tracker(report_on_change=False).confirm_s == 1.0


async def test_samples_are_not_deadbanded_and_reports_are() -> None:
    link, recorder = Cells(flow=1.0), Recorder()
    flow = msgspec.structs.replace(prop("flow", cycle_ms=10, deadband=10), push_method={"mqtt": {}})
    async with running_device(LinkDriver(lambda: link), any_device(flow), recorder) as runner:
        await recorder.until(lambda: len(recorder.samples) > 1)
        link.values["flow"] = 2.0
        await recorder.until(lambda: recorder.samples[-1].value == "2")
        assert {r["flow"].reported.value for r in recorder.reports} == {"1"}
        link.values["flow"] = 12.0
        await recorder.until(lambda: recorder.value("flow") == "12")
        link.values["flow"] = 13.0
        closer = msgspec.structs.replace(prop("flow", cycle_ms=10, deadband=0.5), push_method={"mqtt": {}})
        runner.update(any_device(closer), runner.model)
        await recorder.until(lambda: recorder.value("flow") == "13")
        reads = link.reads
        await recorder.until(lambda: link.reads > reads)
        assert runner.stats.reconnects == 0
    sample = recorder.samples[0]
    assert (sample.device, sample.property_name, sample.type) == ("plant/m1", "flow", "float")


async def test_what_is_wrong_with_a_sink_is_said_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    link, recorder = Cells(flow=1.0), Recorder()
    recorder.problems = ("spec.properties[0].pushMethod.mqtt.address: is missing",)
    async with running_device(LinkDriver(lambda: link), any_device(prop("flow")), recorder):
        await recorder.until(lambda: bool(recorder.states))
        assert recorder.states == [("online", recorder.problems[0])]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"device plant/m1: {recorder.problems[0]}"
    ]


async def test_a_key_that_nobody_reads_is_shown_with_the_state_and_harms_nothing() -> None:
    recorder = Recorder()
    device = any_device(prop("flow", deadbnad=1))
    async with running_device(LinkDriver(lambda: Cells(flow=1.0)), device, recorder):
        await recorder.until(lambda: bool(recorder.states))
        assert recorder.states == [("online", "spec.properties[0].visitors.configData.deadbnad: is not used by any")]


async def test_a_reported_value_out_of_range_is_bad_and_the_last_good_one_stays() -> None:
    model = DeviceModel("plant", "meter", properties=(ModelProperty("flow", "FLOAT", minimum="0", maximum="0.1"),))
    link, recorder = Cells(flow=0.1), Recorder()
    async with running_device(LinkDriver(lambda: link), any_device(prop("flow", cycle_ms=10)), recorder, model):
        await recorder.until(lambda: recorder.value("flow") == "0.1")  # as 32 bits a little more than the maximum
        for value, says in (
            (0.2, "0.2 is above the maximum 0.1"),
            (-1.0, "-1 is below the minimum 0"),
            (float("nan"), "not a finite number"),
            (1e39, "too large for a 32-bit FLOAT"),
            ("text", "not a value of type FLOAT"),
        ):
            link.values["flow"] = value
            await recorder.until(lambda says=says: says in recorder.twins["flow"].reported.reason)  # type: ignore[misc]
            assert (recorder.value("flow"), recorder.quality("flow")) == ("0.1", "bad")
            assert recorder.states[-1][0] == "unhealthy"
        link.values["flow"] = 0.05
        await recorder.until(lambda: (recorder.value("flow"), recorder.quality("flow")) == ("0.05", "good"))
        assert recorder.states[-1] == ("online", "")


def test_values_that_cannot_be_told_are_refused() -> None:
    for type_, value in (("INT", 10**5000), ("STRING", 10**5000), ("DOUBLE", 10**5000), ("STRING", "x" * 70_000)):
        t = tracker(type_)
        with pytest.raises(ConversionError, match=r"large|characters|64 bits|finite|number"):
            t.seen(value, 1000, 1.0)
        assert t.collected_ms == 0


def test_a_range_that_is_no_range_bounds_nothing_and_is_warned_about() -> None:
    model = DeviceModel("plant", "meter", properties=(ModelProperty("flow", "FLOAT", minimum="low", maximum="5"),))
    declared = declare(DRIVER, any_device(prop("flow")), model)
    assert len(declared.warnings) == 1
    assert "minimum 'low'" in declared.warnings[0]
    t = Tracker(prop("flow"), declared.properties["flow"])
    t.seen(1000.0, 1, 1.0)
    assert t.value == "1000"
