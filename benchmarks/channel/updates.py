"""Twin updates of one node on their way to the API, beside plain PATCHes of the same API server by the same client.

Rate: so many devices that CloudCore's pace of one PATCH a device and second does not matter; each has one report on its
way, and the next follows its confirmation, which says that the API has it. The plain PATCHes have the same size, and as
many are in flight as CloudCore has. Turns of both alternate. Latency: one report, or one PATCH, at a time on an idle
system, until a watch shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median

from benchmarks.figures import figure, percentile
from cloudcore.app import MIN_WRITERS
from cloudcore.devicecontroller.kinds import STATUSES
from cloudcore.kube import Key, KubeClient, Object
from cloudedge import Message, new_message, reply, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.message import now_ms
from cloudedge.resources import state_resource, twin_resource
from tests.e2e.replicas import device_name, free_ports, replica_set

__all__ = ["run"]

NODE = "edge-1"
TURNS = 3
WARM_UP_S = 2.0
SAMPLES = 60
PAUSE_S = 0.05


class Edge:
    """One node: sends reports of its devices, and hears what is confirmed."""

    def __init__(self, connection: Connection) -> None:
        self.confirmed = 0
        self.wanted = True
        self._connection = connection
        self._values = itertools.count(1)
        self._on_the_way: dict[str, str] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive())
            group.create_task(self._keep_alive())

    async def say_states(self, devices: list[str]) -> None:
        for device in devices:
            content = {"event_id": "e", "timestamp": now_ms(), "device": {"name": device, "state": "online"}}
            await self._send("update", state_resource("default", device), content)

    async def report(self, device: str) -> str:
        value = str(next(self._values))
        twin = {"actual": {"value": value, "metadata": {"timestamp": now_ms()}}, "metadata": {"type": "int"}}
        content = {"event_id": "e", "timestamp": now_ms(), "twin": {"level": twin}}
        sent = await self._send("update", twin_resource("default", device), content)
        self._on_the_way[sent.id] = device
        return value

    async def _receive(self) -> None:
        while True:
            message = await self._connection.receive()
            if device := self._on_the_way.pop(message.header.parent_msg_id, ""):
                self.confirmed += 1
                if self.wanted:
                    await self.report(device)
            elif message.route.group == "resource" and not message.header.parent_msg_id:
                await self._connection.send(reply(message, source="meta", group="twin"))

    async def _keep_alive(self) -> None:
        while True:
            await self._send("keepalive", "node", "ping", source="websocket")
            await asyncio.sleep(5.0)

    async def _send(self, operation: str, resource: str, content: object, *, source: str = "twin") -> Message:
        message = new_message(source=source, group="resource", operation=operation, resource=resource, content=content)
        await self._connection.send(message)
        return message


def run(seconds: float, devices: int = 3000) -> None:
    asyncio.run(_measure(seconds, devices))


async def _measure(seconds: float, devices: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        folder = Path(name)
        async with replica_set(folder, free_ports(1), nodes=[NODE], devices=devices) as (replicas, client):
            await replicas.listens("replica-0")
            names = [device_name(NODE, number) for number in range(devices)]
            async with _edge(folder, replicas.balancer.port) as edge:
                await edge.say_states(names)
                await _latency(client, edge, names)
                await _rate(client, edge, names, seconds / (2 * TURNS))


async def _rate(client: KubeClient, edge: Edge, names: list[str], turn_s: float) -> None:
    edge.wanted = True
    for name in names:
        await edge.report(name)
    body = await _body(client, names[0])
    through: list[float] = []
    plain: list[float] = []
    for turn in range(TURNS):
        if turn:
            edge.wanted = True
            for name in names:
                await edge.report(name)
        await asyncio.sleep(WARM_UP_S)
        before, began = edge.confirmed, time.monotonic()
        await asyncio.sleep(turn_s)
        through.append((edge.confirmed - before) / (time.monotonic() - began))
        edge.wanted = False
        await _silence(edge)
        plain.append(await _plain_rate(client, names, body, turn_s))
        await asyncio.sleep(WARM_UP_S)  # CloudCore puts its own values back
    figure("channel.updates.through_the_channel", median(through), "updates/s")
    figure("channel.updates.plain_patches", median(plain), "updates/s")
    figure("channel.updates.ratio", median(through) / median(plain), "")


async def _silence(edge: Edge) -> None:
    """Until nothing is confirmed any more."""
    before = -1
    while before != edge.confirmed:
        before = edge.confirmed
        await asyncio.sleep(1.5)


async def _body(client: KubeClient, name: str) -> Object:
    """A patch as CloudCore's are: all twins, and the extensions that change with them."""
    status = (await client.get(STATUSES, Key("default", name)))["status"]
    return {"status": {"twins": status["twins"], "extensions": {"summary": status["extensions"]["summary"]}}}


async def _plain_rate(client: KubeClient, names: list[str], body: Object, turn_s: float) -> float:
    """Only one member of the body differs from patch to patch, so that each is a change, and CloudCore leaves it."""
    numbers = itertools.count(1)
    done = 0
    end = time.monotonic() + turn_s

    async def work() -> None:
        nonlocal done
        while time.monotonic() < end:
            number = next(numbers)
            patch = {"status": {"extensions": {"benchmark": f"{number:<{_size(body)}}"}}}
            await client.patch(STATUSES, Key("default", names[number % len(names)]), patch)
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(MIN_WRITERS)))
    return done / (time.monotonic() - began)


def _size(body: Object) -> int:
    return len(str(body))


async def _latency(client: KubeClient, edge: Edge, names: list[str]) -> None:
    edge.wanted = False
    devices = names[:20]
    for device in devices:
        await edge.report(device)
    await asyncio.sleep(8.0)  # all first words have been written
    page = await client.list_page(STATUSES, limit=1)
    numbers = itertools.count(1)

    async def patch(device: str) -> str:
        mark = f"m{next(numbers)}"
        await client.patch(STATUSES, Key("default", device), {"status": {"extensions": {"benchmark": mark}}})
        return mark

    stream = await client.watch(STATUSES, resource_version=page.resource_version, timeout_s=300, read_timeout_s=60)
    seen: dict[str, float] = {}
    wake = asyncio.Event()

    async def follow() -> None:
        async with stream:
            while (event := await stream.next()) is not None:
                status = event.object.get("status") or {}
                for value in (
                    *(t["reported"]["value"] for t in status.get("twins", ())),
                    (status.get("extensions") or {}).get("benchmark", ""),
                ):
                    seen.setdefault(value, time.monotonic())
                wake.set()

    following = asyncio.create_task(follow())
    try:
        took: dict[str, list[float]] = {"channel": [], "plain": []}
        ways: dict[str, Callable[[str], Awaitable[str]]] = {"channel": edge.report, "plain": patch}
        for number in range(SAMPLES):
            for way, send in ways.items():
                began = time.monotonic()
                mark = await send(devices[number % len(devices)])
                async with asyncio.timeout(30):
                    while mark not in seen:
                        wake.clear()
                        await wake.wait()
                took[way].append(1000 * (seen[mark] - began))
                await asyncio.sleep(PAUSE_S)
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    for way, times in took.items():
        figure(f"channel.updates.idle.{way}.p50", percentile(times, 0.5), "ms")
    figure("channel.updates.idle.added.p50", percentile(took["channel"], 0.5) - percentile(took["plain"], 0.5), "ms")


@contextlib.asynccontextmanager
async def _edge(folder: Path, port: int) -> AsyncIterator[Edge]:
    certs = folder / "certs"
    context = tls.client_context(
        ca_file=certs / "ca.crt", cert_file=certs / f"{NODE}.crt", key_file=certs / f"{NODE}.key"
    )
    connection = await connect(f"wss://127.0.0.1:{port}", node=NODE, ssl_context=context)
    edge = Edge(connection)
    running = asyncio.create_task(edge.run())
    try:
        yield edge
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        connection.abort()
