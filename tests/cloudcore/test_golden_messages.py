"""Messages recorded from upstream's cloud core, reproduced; those of its edge core, read."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.devicecontroller.messages import Operation, membership_message, object_message, report_ok
from cloudcore.devicecontroller.reports import read_state_report, read_twin_report
from cloudcore.kube import Key
from cloudedge import Message, decode, encode
from cloudedge.resources import device_report

LINES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "captures" / "upstream-websocket.jsonl").read_text().splitlines()
]
DOWN = [
    line["msg"]
    for line in LINES
    if line["dir"] == "cloud->edge" and line["msg"]["route"]["source"] == "devicecontroller"
]
UP = [line["msg"] for line in LINES if line["dir"] == "edge->cloud" and line["msg"]["route"]["source"] == "twin"]


def parsed(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(encode(message))
    return result


def as_stored(content: dict[str, Any]) -> dict[str, Any]:
    """The object as the API has it: without what upstream's types add when they are written out."""
    stored: dict[str, Any] = json.loads(json.dumps(content))
    stored.pop("status", None)
    for prop in stored["spec"]["properties"]:
        if prop.get("desired") == {"value": ""}:
            del prop["desired"]
    return stored


@pytest.mark.parametrize(
    "recorded", [m for m in DOWN if m["route"]["group"] == "resource"], ids=lambda m: m["route"]["resource"]
)
def test_object_messages(recorded: dict[str, Any]) -> None:
    namespace, type_, name = recorded["route"]["resource"].split("/")
    kind = {"device": DEVICES, "devicemodel": MODELS}[type_]
    operation: Operation = recorded["route"]["operation"]
    ours = parsed(object_message(operation, kind, Key(namespace, name), as_stored(recorded["content"])))
    assert ours["route"] == recorded["route"]
    assert ours["content"] == recorded["content"]
    assert list(ours["content"]) == list(recorded["content"])
    assert list(ours["header"]) == list(recorded["header"])
    assert ours["header"]["resourceversion"] == recorded["header"]["resourceversion"]


@pytest.mark.parametrize(
    "recorded", [m for m in DOWN if m["route"]["resource"] == "membership"], ids=["added", "removed"]
)
def test_membership_messages(recorded: dict[str, Any]) -> None:
    device = {"metadata": {"labels": {"description": "boiler"}}}
    devices = [(Key("default", "thermo-1"), device)]
    added = recorded["content"]["added_devices"] is not None
    ours = parsed(membership_message(added=devices) if added else membership_message(removed=devices))
    assert ours["route"] == recorded["route"]
    assert list(ours["header"]) == list(recorded["header"])
    assert list(ours["content"]) == list(recorded["content"])
    for key in ("added_devices", "removed_devices"):
        assert ours["content"][key] == recorded["content"][key]


def test_confirmations() -> None:
    recorded = [m for m in DOWN if m["route"]["resource"] == "twin"]
    assert recorded
    for message in recorded:
        request = next(m for m in UP if m["header"]["msg_id"] == message["header"]["parent_msg_id"])
        ours = parsed(report_ok(decode(json.dumps(request)).id))
        assert ours["route"] == message["route"]
        assert ours["content"] == message["content"]
        assert ours["header"]["parent_msg_id"] == message["header"]["parent_msg_id"]


def test_recorded_reports_are_read() -> None:
    twins, states = {}, []
    for recorded in UP:
        message = decode(msgspec.json.encode(recorded))
        report = device_report(message.route.resource)
        if report is None:
            assert message.route.resource == "membership/detail"
        elif report.what == "twin":
            sides, wrong = read_twin_report(message)
            assert not wrong
            twins.update(sides)
        else:
            states.append(read_state_report(message))
    assert twins["counter"].desired is None
    assert twins["counter"].reported is not None
    assert (twins["counter"].reported.value, twins["counter"].reported.collected_ms) == ("2", 1795386375375)
    assert twins["setpoint"].desired is not None
    assert twins["setpoint"].desired.value == "21"
    assert [s.state for s in states] == ["ok", "ok"]
    assert states[0].last_online == "2026-11-22T22:26:18Z"
