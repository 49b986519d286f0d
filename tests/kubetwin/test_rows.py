"""From API objects to the lines people see."""

from typing import Any

import pytest

from kubetwin.rows import DeviceRow, age_text, device_rows, twin_rows

NOW = 1_700_000_010_000
MODEL: dict[str, Any] = {
    "metadata": {"namespace": "plant", "name": "pump"},
    "spec": {"properties": [{"name": "pressure", "unit": "bar"}, {"name": "valve"}]},
}


def device(**desired: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "plant", "name": "pump-1"},
        "spec": {
            "deviceModelRef": {"name": "pump"},
            "properties": [{"name": n, "desired": {"value": desired.get(n, "")}} for n in ("pressure", "valve")],
        },
    }


def status(*twins: dict[str, Any], **extensions: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "plant", "name": "pump-1"},
        "status": {"twins": list(twins), "state": "online", "extensions": extensions},
    }


def twin(name: str, value: str, desired: str = "", **metadata: str) -> dict[str, Any]:
    write = {"write": metadata.pop("write")} if "write" in metadata else {}
    return {
        "propertyName": name,
        "reported": {"value": value, "metadata": {"timestamp": str(NOW - 2_000), **metadata}},
        "observedDesired": {"value": desired, "metadata": write},
    }


def test_a_twin_is_shown_with_unit_age_and_quality() -> None:
    (pressure, _) = twin_rows(
        [device()], [MODEL], [status(twin("pressure", "2.5", quality="stale", reason="no reply"))], now_ms=NOW
    )
    assert (pressure.device, pressure.value, pressure.unit) == ("plant/pump-1", "2.5", "bar")
    assert (pressure.age_s, pressure.quality, pressure.reason) == (2.0, "stale", "no reply")


def test_a_property_without_report_is_shown_all_the_same() -> None:
    rows = twin_rows([device(valve="1")], [MODEL], [], now_ms=NOW)
    assert [(r.property_name, r.value, r.desired, r.write, r.age_s, r.quality) for r in rows] == [
        ("pressure", "", "", "", None, ""),
        ("valve", "", "1", "pending", None, ""),
    ]


@pytest.mark.parametrize(
    ("declared", "observed", "write", "shown"),
    (
        ("1", "1", "applied", "applied"),
        ("2", "1", "applied", "pending"),
        ("", "1", "applied", ""),
        ("1", "1", "failed", "failed"),
    ),
)
def test_a_write_state_belongs_to_the_value_it_was_said_of(
    declared: str, observed: str, write: str, shown: str
) -> None:
    rows = twin_rows([device(valve=declared)], [MODEL], [status(twin("valve", "0", observed, write=write))], now_ms=NOW)
    assert rows[1].write == shown


def test_devices_show_their_state_and_reason() -> None:
    assert device_rows([status(reason="no reply from 192.0.2.1")]) == [
        DeviceRow("plant/pump-1", "online", "no reply from 192.0.2.1")
    ]


@pytest.mark.parametrize(
    ("age", "text"),
    ((None, ""), (0.04, "0.0s"), (9.94, "9.9s"), (12, "12s"), (119, "119s"), (180, "3m"), (7300, "2h"), (200000, "2d")),
)
def test_ages_are_short(age: float | None, text: str) -> None:
    assert age_text(age) == text
