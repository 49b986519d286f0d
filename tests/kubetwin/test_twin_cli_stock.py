"""`kubectl twin` where KubeEdge's own CloudCore, EdgeCore and mapper are: as recorded from running ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubetwin.rows import twin_rows
from kubetwin.twin.describe import Described, describe
from kubetwin.twin.verdicts import verdicts
from kubetwin.twin.wishes import Wish
from tests.kubetwin.twin_world import TwinWorld, device, model, reported, status, twin_world

CAPTURE = Path(__file__).parent.parent / "data" / "captures" / "upstream-websocket.jsonl"
NOW_MS = 1795386390000

pytestmark = pytest.mark.timeout(180)  # each command starts kubectl several times


def recorded(part: str) -> list[dict[str, Any]]:
    """Contents of the messages whose resource ends so."""
    messages = [json.loads(line).get("msg") or {} for line in CAPTURE.read_text().splitlines()]
    contents = [m["content"] for m in messages if m and m["route"]["resource"].endswith(part) and m["content"] != "OK"]
    return [json.loads(c) if isinstance(c, str) else c for c in contents]


def stock_status() -> dict[str, Any]:
    """What a stock CloudCore makes of the recorded reports (device contract 2.2 and 2.3): sides replaced whole, only
    `timestamp` and `type` as metadata, no extensions, both values always there.
    """
    twins: dict[str, dict[str, Any]] = {}
    for content in recorded("thermo-1/twin/edge_updated"):
        for name, twin in content["twin"].items():
            entry = twins.setdefault(
                name, {"propertyName": name, "reported": {"value": ""}, "observedDesired": {"value": ""}}
            )
            for side, key in (("actual", "reported"), ("expected", "observedDesired")):
                if twin.get(side, {}).get("value") is not None:
                    at = str(twin[side]["metadata"]["timestamp"])
                    entry[key] = {"value": twin[side]["value"], "metadata": {"timestamp": at, "type": "string"}}
    state = recorded("thermo-1/state/update")[-1]["device"]
    return {
        "metadata": {"name": "thermo-1", "namespace": "default"}, "spec": {},
        "status": {"twins": list(twins.values()), "state": state["state"], "lastOnlineTime": state["lastOnlineTime"]},
    }  # fmt: skip


def stock_objects() -> tuple[dict[str, Any], dict[str, Any]]:
    (given, *_), (its_model, *_) = recorded("default/device/thermo-1"), recorded("default/devicemodel/thermo-model")
    return given, its_model


def test_recorded_twins_are_shown_with_the_types_of_the_model() -> None:
    given, its_model = stock_objects()
    rows = {r.property_name: r for r in twin_rows([given], [its_model], [stock_status()], now_ms=NOW_MS)}
    setpoint = rows["setpoint"]
    assert (setpoint.value, setpoint.desired, setpoint.in_sync, setpoint.write) == ("21", "21", True, "")
    assert (setpoint.quality, setpoint.state) == ("good", "ok")
    assert setpoint.type == next(p["type"] for p in its_model["spec"]["properties"] if p["name"] == "setpoint")
    assert setpoint.age_s == pytest.approx((NOW_MS - 1795386375379) / 1000)
    counter = rows["counter"]
    assert (counter.is_reported, counter.desired, counter.in_sync) == (True, "", None)


def test_a_recorded_write_has_been_applied() -> None:
    given, _ = stock_objects()
    (verdict,) = verdicts([Wish("setpoint", "21")], given, stock_status(), {"setpoint": "INT"})
    assert verdict.outcome == "applied"
    (verdict,) = verdicts([Wish("setpoint", "21")], given, stock_status(), {}, node_away=True)
    assert (verdict.outcome, verdict.reason) == ("pending", "the device is unknown: its node is not connected")


def test_a_recorded_device_is_described_without_guesses() -> None:
    given, its_model = stock_objects()
    text = describe(Described(given, its_model, stock_status()), now_ms=NOW_MS, node_away=False)
    assert "State:        ok" in text
    assert "Conditions:" not in text
    assert "Write:" not in text


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[TwinWorld]:
    async with twin_world(tmp_path) as running:
        await running.apply(
            model(), device(set_point="42"), status("boiler-1", reported("set-point", "42", desired="42"))
        )
        yield running


def node(ready: str) -> dict[str, Any]:
    """As Kubernetes marks it: a stock CloudCore leaves the devices of a lost node as they were."""
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"},
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "NodeStatusUnknown"}]},
    }  # fmt: skip


async def test_a_lost_node_makes_values_stale_though_nothing_says_so(world: TwinWorld) -> None:
    for ready, quality, state in (("True", "good", "online"), ("Unknown", "stale", "unknown")):
        await world.apply(node("True"))
        patch = {"status": node(ready)["status"]}
        await world.run("patch", "node", "edge-1", "--subresource=status", "--type=merge", "-p", json.dumps(patch))
        ran = await world.twin("get", "-p", "set-point", "-o", "json")
        (row,) = json.loads(ran.out)
        assert (row["quality"], row["state"]) == (quality, state)
    assert "Node:         edge-1  (not Ready)" in (await world.twin("describe", "boiler-1")).out


async def test_waiting_with_a_stock_edge(world: TwinWorld) -> None:
    async with world.following("set", "boiler-1", "set-point=50", "--wait") as command:
        assert (await command.line()).endswith(" patched")
        assert "has not come back from the edge" in await command.complaint()
        await world.report("boiler-1", reported("set-point", "42", desired="50"))
        assert "the edge has it, and the device reports '42'" in await command.complaint()
        await world.report("boiler-1", reported("set-point", "50", desired="50"))
        assert await command.line() == "boiler-1: set-point=50 applied"
        assert await asyncio.wait_for(command.process.wait(), 30) == 0
