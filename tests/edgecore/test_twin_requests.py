"""Topics and payloads of apps: whatever they are, they are read or refused, by name."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dmi import DeviceId
from edgecore.devicetwin.document import Refused, TwinChange, Version, cloud_updated, update
from edgecore.devicetwin.mqtt_requests import (
    MAX_PAYLOAD_BYTES,
    Asked,
    Request,
    read_changes,
    read_event_id,
    read_object,
    read_request,
    read_topic,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=8), child, max_size=3),
    max_leaves=8,
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "expected": JSON | st.fixed_dictionaries({"value": JSON}),
        "actual": JSON | st.fixed_dictionaries({"value": JSON}),
        "optional": JSON,
        "metadata": JSON | st.fixed_dictionaries({"type": st.sampled_from(["int", "deleted", "Bool", 5, None])}),
        "expected_version": JSON | st.fixed_dictionaries({"cloud": JSON, "edge": JSON}),
        "actual_version": JSON | st.fixed_dictionaries({"cloud": JSON, "edge": JSON}),
    },
)


@pytest.mark.parametrize(
    ("topic", "asked"),
    (
        ("$hw/events/device/ns/d/twin/update", Asked("twin/update", DeviceId("ns/d"))),
        ("$hw/events/device/device/device/twin/get", Asked("twin/get", DeviceId("device/device"))),
        ("$hw/events/device/dev/twin/twin/cloud_updated", Asked("twin/cloud_updated", DeviceId("dev/twin"))),
        ("$hw/events/device/ns/d/state/update", Asked("state/update", DeviceId("ns/d"))),
        ("$hw/events/node/any/membership/get", Asked("membership/get")),
        ("$hw/events/node//membership/get", None),
        ("$hw/events/device/d/twin/update", None),
        ("$hw/events/device//d/twin/update", None),
        ("$hw/events/device/ns//twin/update", None),
        ("$hw/events/device/ns/d/e/twin/update", None),
        ("$hw/events/device/ns/d/twin/update/result", None),
        ("$hw/events/device/ns/d/state/get", None),
        ("$hw/events/device/ns/d/updated", None),
        ("x/$hw/events/device/ns/d/twin/update", None),
        ("", None),
    ),
)
def test_topics(topic: str, asked: Asked | None) -> None:
    assert read_topic(topic) == asked


def test_everything_a_request_can_say() -> None:
    said = {
        "p": None,
        "q": {"metadata": {"type": "deleted"}, "actual": "ignored"},
        "r": {
            "expected": {"value": "1", "metadata": {"timestamp": 5}},
            "actual": {"value": "2"},
            "optional": False,
            "metadata": {"type": "int", "unit": "K"},
            "expected_version": {"cloud": 1, "edge": 2},
            "actual_version": {"edge": 3},
            "unheard": ["of"],
        },
    }
    assert read_changes({"twin": said}) == {
        "p": TwinChange(deleted=True),
        "q": TwinChange(deleted=True, type="deleted"),
        "r": TwinChange("1", "2", False, "int", False, Version(1, 2), Version(0, 3)),
    }


def test_keys_are_read_in_any_case() -> None:
    content = read_object(b'{"Event_ID": "e", "STATE": "online", "Twin": {"P": {"Actual": {"Value": "1"}}}}')
    assert read_event_id(content) == "e"
    assert read_request(Asked("state/update"), "e", content) == Request(Asked("state/update"), "e", state="online")
    assert read_changes(content) == {"P": TwinChange(actual="1")}  # a property's name is not a key


@pytest.mark.parametrize(
    ("said", "reason"),
    (
        (5, "property 'p': must be an object or null, not a number"),
        ({"actual": []}, "property 'p': actual: must be an object, not a list"),
        (
            {"actual": {"value": True}},
            "property 'p': actual.value: must be a text, not true or false: write it in quotes",
        ),
        ({"optional": 1}, "property 'p': optional must be true or false, not a number"),
        ({"metadata": {"type": {}}}, "property 'p': metadata.type: must be a text, not an object: write it in quotes"),
        ({"actual_version": {"edge": -1}}, "property 'p': actual_version.edge: must be a whole number from 0 to 2**53"),
        (
            {"actual_version": {"edge": 2**60}},
            "property 'p': actual_version.edge: must be a whole number from 0 to 2**53",
        ),
        (
            {"actual_version": {"edge": 1.5}},
            "property 'p': actual_version.edge: must be a whole number from 0 to 2**53",
        ),
    ),
)
def test_what_is_wrong_is_named(said: Any, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        read_changes({"twin": {"p": said}})
    assert (str(caught.value), caught.value.code, caught.value.what) == (reason, 400, "p")


def test_too_many_properties_are_not_read() -> None:
    with pytest.raises(Refused, match="over 4096 properties"):
        read_changes({"twin": {str(number): None for number in range(4097)}})


def check(refused: Refused) -> None:
    assert refused.code == 400
    assert 5 < len(str(refused)) < 400


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"a":' * 20_000)
@example(b'"' + b"\xff" * 10)
@example(b" " * (MAX_PAYLOAD_BYTES + 1))
@example(b'{"event_id": "\\ud800"}')
def test_any_payload_is_an_object_or_refused(payload: bytes) -> None:
    try:
        content = read_object(payload)
        for asked in (Asked("state/update"), Asked("twin/update"), Asked("twin/get"), Asked("membership/get")):
            read_request(asked, read_event_id(content), content)
    except Refused as refused:
        check(refused)


@given(st.dictionaries(st.sampled_from(["p", "q", ""]) | st.text(max_size=200), LIKELY | JSON, max_size=3))
def test_any_update_is_done_or_refused(twin: dict[str, Any]) -> None:
    try:
        content = read_object(json.dumps({"twin": twin}).encode())
        changes = read_changes(content)
        for change in (update, cloud_updated):
            for row in change({}, changes, {"p": "int", "q": ""}, now_ms=1).values():
                row.twin.reported.value.encode()
                assert max(row.desired_edge, row.desired_cloud, row.reported_edge, row.reported_cloud) <= 2**53
    except Refused as refused:
        check(refused)
