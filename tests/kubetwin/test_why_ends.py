"""Both ends as they are asked for real: a unix socket, and a Kubernetes API through kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudedge.queries import NODE_SILENT
from kubetwin.apiserver import ApiServer
from kubetwin.kubectl import Kubectl, kubectl_path
from kubetwin.why import StepNumber, Verdict, local
from kubetwin.why.collect import find_out
from kubetwin.why.ends import Ends
from kubetwin.why.local import clock_ahead_s, read_edge
from tests.kubetwin.twin_world import TwinWorld, twin_world
from tests.kubetwin.why_world import FACTS, device, model, status


@pytest.fixture
def short() -> Any:
    with tempfile.TemporaryDirectory(prefix="why-") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def edge(path: Path, answer: bytes, *, code: str = "200 OK") -> AsyncIterator[Path]:
    """Something that answers every request the same; an empty answer is none at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /v1/devices/default/boiler-1/path HTTP/1.1\r\n")
        if answer:
            writer.write(f"HTTP/1.1 {code}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        else:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, path):
        yield path


async def test_edge_core_answers(short: Path) -> None:
    facts = msgspec.structs.replace(FACTS, now_ms=time.time_ns() // 1_000_000 - 60_000)
    async with edge(short / "s", msgspec.json.encode(facts)) as path:
        end = await read_edge(path, "default", "boiler-1")
    assert (end.facts, end.trouble, end.absent) == (facts, "", "")
    assert end.clock_ahead_s == pytest.approx(-60, abs=1)


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    (
        (b"hello", "200 OK", "something else"),
        (b'{"node": 7}', "200 OK", "something else"),
        (b'{"error": "the store cannot be read"}', "503 Service Unavailable", "503: {\"error\": \"the store cannot"),
        (b" " * (5 * 1024 * 1024), "200 OK", "something else"),
    ),
)  # fmt: skip
async def test_an_answer_that_is_none_is_said(short: Path, answer: bytes, code: str, says: str) -> None:
    async with edge(short / "s", answer, code=code) as path:
        end = await read_edge(path, "default", "boiler-1")
    assert end.facts is None
    assert says in end.trouble


async def test_edge_core_that_hangs(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TIMEOUT_S", 0.2)
    async with edge(short / "s", b"") as path:
        assert "hangs" in (await read_edge(path, "default", "boiler-1")).trouble


async def test_nobody_behind_the_socket(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = short / "s"
    assert "no such socket" in (await read_edge(path, "default", "boiler-1")).trouble
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert "nobody listens" in (await read_edge(path, "default", "boiler-1")).trouble
    monkeypatch.setattr(local, "DEFAULT_SOCKET", short / "other")
    end = await read_edge(None, "default", "boiler-1")
    assert (end.trouble, "no edge core here" in end.absent) == ("", True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may open any socket")
async def test_a_socket_of_others(short: Path) -> None:
    async with edge(short / "s", b"x") as path:
        await asyncio.to_thread(path.chmod, 0)
        assert "owner" in (await read_edge(path, "default", "boiler-1")).absent


def test_clocks_differ_by_what_the_answer_cannot_explain() -> None:
    assert clock_ahead_s(5_000, 4.9, 5.2) == 0
    assert clock_ahead_s(5_000, 1.0, 2.0) == 3
    assert clock_ahead_s(5_000, 8.0, 9.0) == -3


# The API's end. There is no CloudCore here: what it would do is written by the test.


def typed(kind: str, obj: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": obj["metadata"]["name"]}
    return {**obj, "apiVersion": "devices.kubeedge.io/v1beta1", "kind": kind, "metadata": metadata}


def stock_status() -> dict[str, Any]:
    return typed("DeviceStatus", {"metadata": {"name": "boiler-1"}, "spec": {}, **status(extensions=None)})


def nobodys() -> list[dict[str, Any]]:
    """Device and DeviceModel that no driver here has an opinion on."""
    any_protocol = model()
    del any_protocol["spec"]["protocol"]
    line = device(protocol={"protocolName": "line", "configData": {}})
    return [typed("Device", line), typed("DeviceModel", any_protocol)]


def state_of(verdict: Verdict, number: StepNumber) -> str:
    return verdict.steps[number - 1].state


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[TwinWorld]:
    async with twin_world(tmp_path) as world:
        yield world


async def answer(world: TwinWorld, said: dict[str, Any]) -> None:
    """Play CloudCore for one question."""
    while True:
        extensions = (await world.kubectl.get("devicestatuses", "default", "boiler-1"))["status"]["extensions"]
        for id_, question in (extensions.get("queries") or {}).items():
            assert question["ask"] == "path"
            await world.report("boiler-1", extensions={"queries": {id_: {"answer": {**said, "answered_ms": 1}}}})
            return
        await asyncio.sleep(0.05)


async def look(world: TwinWorld) -> Verdict:
    return await find_out(Ends(world.kubectl, ask_edge=False), "default", "boiler-1")


async def test_an_api_without_kubeedge(tmp_path: Path) -> None:
    async with ApiServer(tmp_path, port=0) as server:
        kubectl = Kubectl((kubectl_path(), "--kubeconfig", str(server.kubeconfig)))
        verdict = await find_out(Ends(kubectl, ask_edge=False), "default", "boiler-1")
    assert verdict.exit_code == 12, verdict.summary
    assert "kubetwin crds" in verdict.todo


async def test_definitions_without_device_statuses(world: TwinWorld) -> None:
    """As a cluster has them that was set up before KubeEdge 1.23."""
    await world.apply(*nobodys())
    await world.run("delete", "crd", "devicestatuses.devices.kubeedge.io")
    verdict = await look(world)
    assert (verdict.exit_code, "does not serve devicestatuses" in verdict.summary) == (16, True), verdict.summary
    await world.run("delete", "crd", "devicemodels.devices.kubeedge.io")
    verdict = await look(world)
    assert (verdict.exit_code, "does not serve devicemodels" in verdict.summary) == (13, True), verdict.summary


async def test_a_stock_cloudcore(world: TwinWorld) -> None:
    await world.apply(typed("Device", device()), typed("DeviceModel", model()), stock_status())
    verdict = await look(world)
    assert verdict.exit_code == 0, verdict.summary
    assert state_of(verdict, StepNumber.CLOUDCORE) == "unknown"
    assert state_of(verdict, StepNumber.ANSWERING) == "unknown"
    assert state_of(verdict, StepNumber.VISIBLE) == "ok"
    left = await world.kubectl.get("devicestatuses", "default", "boiler-1")
    assert not (left["status"].get("extensions") or {}).get("queries"), "the question is taken away again"


async def test_no_cloudcore_at_all(world: TwinWorld) -> None:
    await world.apply(*nobodys())
    began = time.monotonic()
    verdict = await look(world)
    assert verdict.exit_code == 16
    assert "no DeviceStatus" in verdict.summary
    assert time.monotonic() - began > 3, "it might have been under way: it was looked at again"


async def test_a_node_that_answers_through_the_status(world: TwinWorld) -> None:
    await world.apply(typed("Device", device()), typed("DeviceModel", model()), stock_status())
    await world.report("boiler-1", extensions={"summary": "temperature=21.5"})
    version = json.loads(await world.run("get", "device", "boiler-1", "-o", "json"))["metadata"]["resourceVersion"]
    facts = msgspec.structs.replace(FACTS, declared_version=version, now_ms=time.time_ns() // 1_000_000 + 90_000)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(world, {"result": msgspec.to_builtins(facts)}))
        verdict = await look(world)
    assert {step.state for step in verdict.steps} == {"ok"}, verdict.summary
    assert verdict.clock_ahead_s == pytest.approx(90, abs=5)
    assert any("ahead" in note for note in verdict.notes)


async def test_a_node_that_hangs_behind_its_connection(world: TwinWorld) -> None:
    await world.apply(typed("Device", device()), typed("DeviceModel", model()), stock_status())
    await world.report("boiler-1", extensions={"summary": "temperature=21.5"})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(world, {"error": "its edge core did not answer", "reason": NODE_SILENT}))
        verdict = await look(world)
    assert (verdict.exit_code, "its edge core did not answer" in verdict.summary) == (17, True), verdict.summary
