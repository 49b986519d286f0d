"""The envelope against recorded upstream traffic, and against nonsense."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import MalformedMessage, Message, decode, encode, new_message, reply
from cloudedge.resources import (
    DeviceReport,
    ObjectPath,
    device_report,
    object_path,
    state_resource,
    twin_resource,
)

CAPTURES = Path(__file__).parent.parent / "data" / "captures" / "upstream-websocket.jsonl"
RECORDED: list[dict[str, Any]] = [
    line["msg"] for line in map(json.loads, CAPTURES.read_text().splitlines()) if line["dir"] != "handshake"
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda m: f"{m['route']['operation']} {m['route']['resource']}")
def test_every_recorded_message_survives_member_for_member(recorded: dict[str, Any]) -> None:
    frame = (json.dumps(recorded, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
    assert encode(decode(frame)) == frame


@given(st.sampled_from(RECORDED), st.sampled_from([str.upper, str.title, str.capitalize]))
def test_names_may_be_in_any_letters(recorded: dict[str, Any], other: Callable[[str], str]) -> None:
    """Go matches them so; what is in the content stays as it is."""
    shouted = {
        other(part): {other(name): value for name, value in members.items()} if part != "content" else members
        for part, members in recorded.items()
    }
    assert encode(decode(json.dumps(shouted))) == encode(decode(json.dumps(recorded)))


@given(st.text(), st.text(), st.text(), st.text(), json_values, st.text(), st.sampled_from(["", "42"]))
def test_any_message_survives(
    source: str, group: str, operation: str, resource: str, content: Any, parent: str, version: str
) -> None:
    message = new_message(
        source=source, group=group, operation=operation, resource=resource, content=content, parent=parent,
        resource_version=version,
    )  # fmt: skip
    again = decode(encode(message))
    assert (again.header, again.route) == (message.header, message.route)
    if not isinstance(content, str):
        assert again.data() == content


def test_what_is_empty_is_left_out_as_go_does() -> None:
    members = json.loads(
        encode(
            new_message(source="websocket", group="resource", operation="keepalive", resource="node", content="ping")
        )
    )
    assert list(members) == ["header", "route", "content"]
    assert list(members["header"]) == ["msg_id", "timestamp"]
    assert members["content"] == "ping"
    assert json.loads(encode(new_message(source="", group="g", operation="o", resource="r"))) | {"header": {}} == {
        "header": {},
        "route": {"group": "g", "operation": "o", "resource": "r"},
        "content": None,
    }


def test_a_reply_names_the_message_it_answers() -> None:
    asked = new_message(
        source="devicecontroller", group="resource", operation="insert", resource="ns/device/d", content={}
    )
    answer = reply(asked, source="meta", group="twin")
    assert answer.header.parent_msg_id == asked.id
    assert answer.header.msg_id != asked.id
    assert (answer.route.source, answer.route.group, answer.route.operation) == ("meta", "twin", "response")
    assert answer.route.resource == "ns/device/d"
    assert answer.is_ok


def test_content_sent_as_text_is_read_as_what_it_contains() -> None:
    assert new_message(source="s", group="g", operation="o", resource="r", content='{"a":1}').data() == {"a": 1}


@given(st.binary(max_size=200))
def test_nonsense_is_refused_and_never_more(frame: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        assert isinstance(decode(frame), Message)


@pytest.mark.parametrize(
    "frame",
    (
        b"",
        b"[]",
        b'{"header":{}}',
        b'{"header":{"msg_id":1},"route":{}}',
        b"\xff\xfe",
        b'{"header":{"msg_id":"a"},"route":{}} {}',
    ),
)
def test_what_is_no_envelope_is_refused(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(frame)


@pytest.mark.parametrize(
    ("resource", "parts"),
    (
        ("default/device/thermo-1", ObjectPath("default", "device", "thermo-1")),
        ("null/node/edge1", ObjectPath("", "node", "edge1")),
        ("default/pod", ObjectPath("default", "pod", "")),
        ("dev/pod/membership", ObjectPath("dev", "pod", "membership")),
    ),
)
def test_object_paths(resource: str, parts: ObjectPath) -> None:
    assert object_path(resource) == parts
    assert str(parts) == resource


@pytest.mark.parametrize("resource", ("", "a", "a//b", "a/b/c/d", "/a/b"))
def test_what_is_no_path_is_refused(resource: str) -> None:
    with pytest.raises(MalformedMessage):
        object_path(resource)


def test_device_reports_are_told_apart_by_element_not_by_substring() -> None:
    # Namespaces and names that upstream's substring matching trips over.
    for namespace in ("dev", "device", "twin", "membership"):
        assert device_report(twin_resource(namespace, "state")) == DeviceReport(namespace, "state", "twin")
        assert device_report(state_resource(namespace, "update")) == DeviceReport(namespace, "update", "state")
    for resource in (
        "membership/detail",
        "device/a/b/twin/edge_updated/x",
        "device//b/twin/edge_updated",
        "device/a/b/twin",
    ):
        assert device_report(resource) is None
