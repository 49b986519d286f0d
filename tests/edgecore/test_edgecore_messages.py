"""Messages against what upstream's cores were recorded saying."""

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import MalformedMessage, Message, decode, encode, new_message
from dmi import Desired, DeviceId, Reported, Twin
from edgecore.bus import Confirmed, ObjectMessage, Reply, TwinMessage, UserMessage
from edgecore.devicetwin.messages import membership_request, state_message, twin_message
from edgecore.edgehub import keepalive, route
from edgecore.metamanager.manager import acknowledgement
from edgecore.metamanager.rules import Incoming, decide, read_membership, read_object
from edgecore.store import StateRow, StoredObject, TwinRow
from tests.edgecore.peers import NODE

CAPTURES = Path(__file__).parent.parent / "data" / "captures" / "upstream-websocket.jsonl"


def captured(direction: str) -> list[Message]:
    lines = [json.loads(line) for line in CAPTURES.read_text().splitlines()]
    return [decode(json.dumps(line["msg"])) for line in lines if line["dir"] == direction]


UP = captured("edge->cloud")
DOWN = captured("cloud->edge")


def shape(value: Any) -> Any:
    """Keys in order and types, without the values."""
    if isinstance(value, dict):
        return [(key, shape(child)) for key, child in value.items()]
    if isinstance(value, list):
        return [shape(child) for child in value]
    return type(value).__name__


def wire(message: Message) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(encode(message))
    content = loaded["content"]
    if isinstance(content, str) and content.startswith("{"):
        loaded["content"] = ["text of", json.loads(content)]
    return loaded


def rebuilt(message: Message) -> Message:
    """What we say where upstream said this."""
    route_ = message.route
    if route_.operation == "keepalive":
        return keepalive()
    data = message.data()
    if route_.resource == "membership/detail":
        return membership_request(NODE)
    device = DeviceId("/".join(route_.resource.split("/")[1:3]))
    if route_.resource.endswith("/state/update"):
        said = data["device"]
        online_ms = datetime.datetime.fromisoformat(said["lastOnlineTime"]).timestamp() * 1000
        return state_message(device, StateRow(state=said["state"], last_online_ms=int(online_ms), version=1))
    rows = []
    for name, twin in data["twin"].items():
        expected = twin.get("expected")
        desired = Desired(expected["value"], "", expected["metadata"]["timestamp"]) if expected else Desired()
        actual = twin["actual"]
        told = Twin(name, Reported(actual["value"], "", actual["metadata"]["timestamp"]), desired)
        row = TwinRow(
            told,
            version=1,
            reported_edge=twin["actual_version"]["edge"],
            # The stock mapper framework wants nothing with an empty text, which upstream counts as a change.
            desired_edge=twin["expected_version"]["edge"],
        )
        rows.append(row)
    return twin_message(device, rows)


@pytest.mark.parametrize(
    "message",
    [m for m in UP if m.route.source in ("twin", "websocket") and m.route.operation != "response"],
    ids=lambda m: m.route.resource,
)
def test_what_upstream_says_is_said_the_same_way(message: Message) -> None:
    ours, theirs = wire(rebuilt(message)), wire(message)
    assert shape(ours) == shape(theirs)
    assert ours["route"] == theirs["route"]
    for changing in ("event_id", "timestamp", "group_id"):
        for content in (ours["content"], theirs["content"]):
            target = content[1] if isinstance(content, list) else content
            if isinstance(target, dict):
                target.pop(changing, None)
    assert ours["content"] == theirs["content"]


@pytest.mark.parametrize(
    "message",
    [m for m in DOWN if not m.header.parent_msg_id and m.route.source == "devicecontroller"],
    ids=lambda m: f"{m.route.operation} {m.route.resource}",
)
def test_acknowledgements_are_upstreams(message: Message) -> None:
    theirs = next((m for m in UP if m.header.parent_msg_id == message.id), None)
    if message.route.group == "twin":
        assert theirs is None
        return
    assert theirs is not None
    ours = acknowledgement(message)
    assert shape(wire(ours)) == shape(wire(theirs))
    assert (ours.route, ours.header.parent_msg_id, ours.is_ok) == (theirs.route, message.id, True)


@pytest.mark.parametrize("message", DOWN, ids=lambda m: f"{m.route.operation} {m.route.resource}")
def test_everything_recorded_from_the_cloud_is_understood(message: Message) -> None:
    event = route(message)
    parent = message.header.parent_msg_id
    match message.route.group, bool(parent):
        case "resource", True:
            assert event == Reply(message)
        case "resource", False:
            assert isinstance(event, ObjectMessage)
            incoming = read_object(message)
            assert (incoming.operation, incoming.version) == (message.route.operation, message.header.resourceversion)
            assert incoming.uid == message.data()["metadata"]["uid"]
            assert decide(None, incoming) == ("ignore" if incoming.operation == "delete" else "put")
        case "twin", True:
            assert event == Confirmed(parent)
        case "twin", False:
            assert isinstance(event, TwinMessage)
            assert read_membership(message) is None


def test_our_additions_are_plain_keys_beside_upstreams() -> None:
    twin = Twin("p", Reported("1", "float", 5, "stale", "no reply"), Desired("2", "float", 4, "failed", "refused"))
    content = twin_message(DeviceId("n/d"), [TwinRow(twin, version=7)]).data()["twin"]["p"]
    assert content["expected"] == {"value": "2", "metadata": {"timestamp": 4, "write": "failed", "reason": "refused"}}
    assert content["actual"] == {"value": "1", "metadata": {"timestamp": 5, "quality": "stale", "reason": "no reply"}}
    assert content["metadata"] == {"type": "float"}
    state = state_message(DeviceId("n/d"), StateRow("online", "", "unknown", "no mapper", 0, 1)).data()["device"]
    assert state == {"name": "d", "state": "unknown", "lastOnlineTime": "", "reason": "no mapper"}
    since = state_message(DeviceId("n/d"), StateRow("online", version=1, since_ms=17)).data()["device"]
    assert since == {"name": "d", "state": "online", "lastOnlineTime": "", "since": 17}


def test_each_side_has_its_own_version() -> None:
    twin = Twin("p", Reported("1", "int", 5), Desired("2", "int", 4))
    row = TwinRow(twin, 9, optional=False, reported_edge=3, reported_cloud=1, desired_edge=2)
    content = twin_message(DeviceId("n/d"), [row]).data()["twin"]["p"]
    assert content["actual_version"] == {"cloud": 1, "edge": 3}
    assert content["expected_version"] == {"cloud": 0, "edge": 2}
    assert content["optional"] is False


def test_a_deleted_twin_goes_up_without_values() -> None:
    twin = Twin("p", Reported(collected_ms=7), Desired(updated_ms=7))
    content = twin_message(DeviceId("n/d"), [TwinRow(twin, 4, deleted=True, reported_edge=4)]).data()["twin"]["p"]
    assert content == {
        "expected": {"metadata": {"timestamp": 7}},
        "actual": {"metadata": {"timestamp": 7}},
        "optional": True,
        "metadata": {"type": "deleted"},
        "expected_version": {"cloud": 0, "edge": 0},
        "actual_version": {"cloud": 0, "edge": 4},
    }


def stored(uid: str = "a", version: str = "5") -> StoredObject:
    return StoredObject("device", "n", "d", uid, version, b"{}")


def incoming(operation: Any = "update", uid: str = "a", version: str = "5") -> Incoming:
    return Incoming(operation, "device", "n", "d", uid, version, b"{}")


@pytest.mark.parametrize(
    ("message", "decision"),
    (
        (incoming(version="6"), "put"),
        (incoming(version="5"), "put"),
        (incoming(version="4"), "ignore"),
        (incoming(version="10"), "put"),  # numbers, not texts
        (incoming(version="18446744073709551615"), "put"),
        (incoming(version="rubbish"), "put"),
        (incoming(uid="b", version="1"), "replace"),  # a rebuilt cluster counts from the start
        (incoming(uid=""), "put"),
        (incoming("delete", version="4"), "delete"),
        (incoming("delete", uid="b", version="4"), "ignore"),  # late: of the one before
        (incoming("delete", uid="b", version="6"), "delete"),
        (incoming("delete", uid="b", version=""), "ignore"),
    ),
)
def test_which_message_wins(message: Incoming, decision: str) -> None:
    assert decide(stored(), message) == decision


@pytest.mark.parametrize(
    ("operation", "resource", "content"),
    (
        ("patch", "default/device/d", {}),
        ("insert", "default/device", {}),
        ("insert", "device", {}),
        ("insert", "a/b/c/d", {}),
        ("insert", "../device/d/", {}),
        ("insert", "default/device/d", None),
        ("insert", "default/device/d", [1]),
        ("insert", "default/device/d", "text"),
        ("update", "default/device/d", {"metadata": 5}),
        ("update", "default/device/d", {"metadata": {"uid": 5}}),
    ),
)
def test_objects_that_make_no_sense_are_named(operation: str, resource: str, content: Any) -> None:
    message = new_message(source="x", group="resource", operation=operation, resource=resource, content=content)
    with pytest.raises(MalformedMessage, match=resource.replace(".", r"\.")):
        read_object(message)


def test_a_delete_may_come_without_an_object() -> None:
    message = new_message(source="x", group="resource", operation="delete", resource="n/device/d")
    assert read_object(message) == Incoming("delete", "device", "n", "d", "", "", b"")


@pytest.mark.parametrize(
    "content", ({}, {"devices": 5}, {"devices": [{}]}, {"devices": [{"id": "x"}]}, {"devices": [{"id": "a/b/c"}]}, [])
)
def test_a_membership_list_that_makes_no_sense_removes_nothing(content: Any) -> None:
    message = new_message(source="x", group="twin", operation="update", resource="membership/detail", content=content)
    with pytest.raises(MalformedMessage):
        read_membership(message)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_any_content_is_taken_or_named(content: Any) -> None:
    for resource in ("membership/detail", "default/device/d"):
        message = new_message(source="x", group="twin", operation="update", resource=resource, content=content)
        for read in (read_membership, read_object):
            with contextlib.suppress(MalformedMessage):
                assert read(message) is None or resource == "default/device/d" or "devices" in content


def test_where_a_message_of_no_object_goes() -> None:
    message = new_message(source="router_eventbus", group="user", operation="publish", resource="t", content="x")
    assert route(message) == UserMessage(message)
    odd = msgspec.structs.replace(message, route=msgspec.structs.replace(message.route, group="nonsense"))
    assert route(odd) is None
