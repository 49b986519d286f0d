"""Upstream's MQTT topics of the device twin, one by one, at a running edge core: what an app says, and all it hears."""

import pytest

from tests.edgecore.local_apps import (
    DELTA,
    DEVICE,
    DOCUMENT,
    NODE_TOPIC,
    RESULT,
    TIME,
    UPDATE,
    UUID,
    Apps,
    answer,
    twin,
)
from tests.edgecore.peers import NODE, Json

UP: list[tuple[str, str, Json | bytes, list[tuple[str, Json]]]] = [
    (
        "membership get",
        f"{NODE_TOPIC}/get",
        {"event_id": "e1", "timestamp": 0},
        [(f"{NODE_TOPIC}/get/result", answer("e1", devices=[{"id": "default/boiler-1", "name": "boiler-1"}]))],
    ),
    (
        "membership get that is not JSON",
        f"{NODE_TOPIC}/get",
        b"{",
        [(f"{NODE_TOPIC}/get/result", answer("", code=400, reason="payload is not JSON: Input data was truncated"))],
    ),
    (
        "actual of a new property",
        UPDATE,
        {
            "event_id": "e2",
            "timestamp": 1,
            "twin": {"setpoint": {"actual": {"value": "25"}, "metadata": {"type": "int"}}},
        },
        [
            (RESULT, answer("e2", twin={"setpoint": twin("int", actual="25")})),
            (DOCUMENT, answer("e2", twin={"setpoint": {"last": None, "current": twin("int", actual="25")}})),
        ],
    ),
    (
        "expected of a new property",
        UPDATE,
        {"event_id": "e2", "twin": {"setpoint": {"expected": {"value": "30"}}}},
        [
            (RESULT, answer("e2", twin={"setpoint": twin("int", expected="30")})),
            (DOCUMENT, answer("e2", twin={"setpoint": {"last": None, "current": twin("int", expected="30")}})),
            (DELTA, answer(UUID, twin={"setpoint": twin("int", expected="30")}, delta={"setpoint": "30"})),
        ],
    ),
    (
        "both sides, apart",
        UPDATE,
        {"event_id": "e2", "twin": {"setpoint": {"expected": {"value": "30"}, "actual": {"value": "25"}}}},
        [
            (RESULT, answer("e2", twin={"setpoint": twin("int", expected="30", actual="25")})),
            (
                DOCUMENT,
                answer("e2", twin={"setpoint": {"last": None, "current": twin("int", expected="30", actual="25")}}),
            ),
            (DELTA, answer(UUID, twin={"setpoint": twin("int", expected="30", actual="25")}, delta={"setpoint": "30"})),
        ],
    ),
    (
        "both sides, alike",
        UPDATE,
        {"event_id": "e2", "twin": {"temperature": {"expected": {"value": "30"}, "actual": {"value": "30.0"}}}},
        [
            (RESULT, answer("e2", twin={"temperature": twin("float", expected="30", actual="30.0")})),
            (
                DOCUMENT,
                answer(
                    "e2", twin={"temperature": {"last": None, "current": twin("float", expected="30", actual="30.0")}}
                ),
            ),
        ],
    ),
    (
        "a property that is not declared",
        UPDATE,
        {"event_id": "e2", "twin": {"setpoint": {"actual": {"value": "1"}}, "volume": {"actual": {"value": "1"}}}},
        [
            (
                RESULT,
                answer(
                    "e2",
                    code=400,
                    reason="device default/boiler-1: property 'volume': the Device does not declare it; "
                    "add it to spec.properties",
                ),
            )
        ],
    ),
    (
        "a value of another type",
        UPDATE,
        {"event_id": "e2", "twin": {"setpoint": {"actual": {"value": "warm"}}}},
        [
            (
                RESULT,
                answer(
                    "e2",
                    code=400,
                    reason="device default/boiler-1: property 'setpoint': actual value: 'warm' is not an INT: "
                    "write a decimal whole number",
                ),
            )
        ],
    ),
    (
        "a number instead of a text",
        UPDATE,
        {"event_id": "e2", "twin": {"setpoint": {"actual": {"value": 25}}}},
        [
            (
                RESULT,
                answer(
                    "e2",
                    code=400,
                    reason="device default/boiler-1: property 'setpoint': actual.value: must be a text, not a number: "
                    "write it in quotes",
                ),
            )
        ],
    ),
    (
        "no twin",
        UPDATE,
        {"event_id": "e2"},
        [(RESULT, answer("e2", code=400, reason="device default/boiler-1: twin: is missing"))],
    ),
    (
        "an update that is not JSON, answered as upstream and where the app listens",
        UPDATE,
        b"hello",
        [
            (
                topic,
                answer(
                    "",
                    code=400,
                    reason="device default/boiler-1: payload is not JSON: JSON is malformed: "
                    "invalid character (byte 0)",
                ),
            )
            for topic in (RESULT, "$hw/events/device//twin/update/result")
        ],
    ),
    (
        "an unknown device",
        "$hw/events/device/default/nobody/twin/update",
        {"event_id": "e2", "twin": {"setpoint": {"actual": {"value": "1"}}}},
        [
            (
                "$hw/events/device/default/nobody/twin/update/result",
                answer("e2", code=404, reason=f"device default/nobody: is not on node {NODE}"),
            )
        ],
    ),
    (
        "get of nothing",
        f"{DEVICE}/twin/get",
        {"event_id": "e3", "timestamp": 0},
        [(f"{DEVICE}/twin/get/result", answer("e3", twin={}))],
    ),
    (
        "get of an unknown device",
        "$hw/events/device/default/nobody/twin/get",
        {"event_id": "e3"},
        [
            (
                "$hw/events/device/default/nobody/twin/get/result",
                answer("e3", code=404, reason=f"device default/nobody: is not on node {NODE}"),
            )
        ],
    ),
    (
        "get that is not JSON",
        f"{DEVICE}/twin/get",
        b"[]",
        [
            (
                f"{DEVICE}/twin/get/result",
                answer("", code=400, reason="device default/boiler-1: payload must be a JSON object, not a list"),
            )
        ],
    ),
    (
        "a sync from the cloud",
        f"{DEVICE}/twin/cloud_updated",
        {
            "event_id": "e5",
            "twin": {
                "setpoint": {
                    "expected": {"value": "30"},
                    "metadata": {"type": "int"},
                    "expected_version": {"cloud": 1, "edge": 0},
                }
            },
        },
        [
            (DOCUMENT, answer("e5", twin={"setpoint": {"last": None, "current": twin("int", expected="30")}})),
            (DELTA, answer(UUID, twin={"setpoint": twin("int", expected="30")}, delta={"setpoint": "30"})),
        ],
    ),
    (
        "a sync without versions",
        f"{DEVICE}/twin/cloud_updated",
        {"event_id": "e5", "twin": {"setpoint": {"expected": {"value": "30"}}}},
        [
            (
                RESULT,
                answer(
                    "e5", code=400, reason="device default/boiler-1: property 'setpoint': expected_version is missing"
                ),
            )
        ],
    ),
    (
        "a sync for an unknown device",
        "$hw/events/device/default/nobody/twin/cloud_updated",
        {"event_id": "e5", "twin": {}},
        [
            (
                "$hw/events/device/default/nobody/twin/update/result",
                answer("e5", code=404, reason=f"device default/nobody: is not on node {NODE}"),
            )
        ],
    ),
    (
        "a state",
        f"{DEVICE}/state/update",
        {"event_id": "e4", "timestamp": 1, "State": "Online"},
        [
            (
                f"{DEVICE}/state/update/result",
                answer("e4", device={"name": "boiler-1", "state": "online", "lastOnlineTime": TIME}),
            )
        ],
    ),
    (
        "a state that there is not",
        f"{DEVICE}/state/update",
        {"event_id": "e4", "state": "asleep"},
        [
            (
                f"{DEVICE}/state/update/result",
                answer(
                    "e4",
                    code=400,
                    reason="device default/boiler-1: state: 'asleep' is not one of offline, ok, online, unhealthy, "
                    "unknown",
                ),
            )
        ],
    ),
    (
        "a state of an unknown device",
        "$hw/events/device/default/nobody/state/update",
        {"event_id": "e4", "state": "online"},
        [
            (
                "$hw/events/device/default/nobody/state/update/result",
                answer("e4", code=404, reason=f"device default/nobody: is not on node {NODE}"),
            )
        ],
    ),
    ("upstream's unreachable topics", f"{DEVICE}/state/get", {"event_id": "e6"}, []),
    ("an old topic with the device's name alone", "$hw/events/device/boiler-1/twin/get", {"event_id": "e6"}, []),
    ("a result of our own that comes back", RESULT, {"event_id": "e6"}, []),
]


@pytest.mark.parametrize(("topic", "payload", "outs"), [row[1:] for row in UP], ids=[row[0] for row in UP])
async def test_the_table(apps: Apps, topic: str, payload: Json | bytes, outs: list[tuple[str, Json]]) -> None:
    assert await apps.ask(topic, payload, len(outs)) == outs
    await apps.has_heard_all()
