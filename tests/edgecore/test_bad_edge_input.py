"""Bad input of every kind at a running edge core: mappers' calls, local apps' messages, and rows of its own database.

Meanwhile another device's mapper goes on reporting, and every one of its reports is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import msgspec
import psutil
import pytest

from cloudedge import new_message
from cloudedge.message import encode, now_ms
from dmi import DeviceId
from edgecore.config import EdgeCoreConfig, EventBusConfig
from edgecore.store import open_database
from edgecore.store.outbox import put_kept
from tests.edgecore.api_client import get, get_text
from tests.edgecore.bad_input import (
    CALLS,
    CORPUS,
    LONG,
    ODD,
    REGISTER,
    STATES,
    STATUS,
    TARGET,
    TOPICS,
    TWIN,
    mapper_of,
    report_of,
    reported,
    state_of,
)
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.mqtt_world import App, app, free_port, until
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

pytestmark = [pytest.mark.timeout(120)]

STEADY: Final = "default/boiler-1"
MOST_GROWTH_MB: Final = 40
"""Messages of a megabyte leave that much behind in the allocator, and no more when they are ten times as many."""
SEED: Final = 4


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def config(config: EdgeCoreConfig, port: int) -> EdgeCoreConfig:
    events = EventBusConfig(enable=True, mqtt_mode=0, mqtt_server_internal=f"tcp://127.0.0.1:{port}", mqtt_qos=1)
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, event_bus=events))


class Node:
    """A running edge core, as its mappers, its cloud and its local API see it."""

    def __init__(self, directory: Path, edge: EdgeProcess, cloud: FakeCloud, mapper: FakeMapper) -> None:
        self.api, self.socket = directory / "edgecore.sock", directory / "dmi.sock"
        self.database = directory / "edgecore.db"
        self.edge, self.cloud, self.mapper = edge, cloud, mapper
        self.reports = 0

    @property
    def rss_mb(self) -> float:
        assert self.edge.process is not None
        return psutil.Process(self.edge.process.pid).memory_info().rss / 1e6

    async def end(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(20):
            return await self.edge.end(signal.SIGTERM)

    async def count(self, metric: str) -> float:
        """All of a metric's series together."""
        status, text = await get_text(self.api, "/metrics")
        assert status == 200
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """A report every 20 ms; one that is refused ends the test, and the last is at the cloud in the end."""

        async def report() -> None:
            while True:
                self.reports += 1
                await self.mapper.report(STEADY, temperature=str(self.reports))
                await asyncio.sleep(0.02)

        before, task = self.reports, asyncio.create_task(report(), name="steady reports")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert self.reports > before
        await self.mapper.report(STEADY, temperature=str(self.reports + 1))
        await self.cloud.until_value(STEADY, "temperature", str(self.reports + 1))
        assert self.edge.process is not None
        assert self.edge.process.returncode is None


@pytest.fixture
async def node(
    edge_process: Callable[[], EdgeProcess], cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> AsyncIterator[Node]:
    edge = edge_process()
    await edge.start()
    await cloud.put(model_object())
    for name in (STEADY, TARGET):
        await cloud.put(device_object(name.partition("/")[2]))
    async with mapper.running():
        node = Node(tmp_path, edge, cloud, mapper)
        yield node
        assert await node.end() == 0, "\n".join(node.edge.log[-20:])


# What mappers call


async def called(channel: grpc.aio.Channel, method: str, request: bytes) -> tuple[str, str]:
    """Code and text of the answer; no code when it is a good one."""
    call = channel.unary_unary(f"/v1beta1.DeviceManagerService/{method}")
    try:
        await call(request, timeout=15)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "", ""


@contextlib.asynccontextmanager
async def dialled(node: Node) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(f"unix:{node.socket}", options=options) as channel:
        yield channel


async def test_calls_of_mappers(node: Node) -> None:
    async with dialled(node) as channel:
        for method, request, _, _ in CALLS:  # once before memory is measured
            await called(channel, method, request)
        before, counted = node.rss_mb, await node.count("kubetwin_edgecore_dmi_calls_total")
        async with node.reporting():
            for _ in range(3):
                for method, request, code, text in CALLS:
                    got, why = await called(channel, method, request)
                    assert (got, len(why) < 2000) == (code, True), (method, request[:80], why[:300])
                    assert text in why, (method, request[:80])
            for twin in ODD:
                assert await called(channel, STATUS, report_of(twin)) == ("", ""), str(twin)[:200]
        assert await node.count("kubetwin_edgecore_dmi_calls_total") - counted > len(CALLS)
        assert await node.count("kubetwin_edgecore_refused_total") > 10_000
        assert node.rss_mb - before < MOST_GROWTH_MB
    assert max(map(len, node.edge.log)) < 3000
    await node.mapper.report(TARGET, temperature="77")
    assert len(json.dumps(await node.cloud.until_value(TARGET, "temperature", "77"))) < 5000
    status, path = await get_text(node.api, f"/v1/devices/{TARGET}/path")
    assert status == 200
    assert "device default/target has no property" in path


async def test_calls_with_bytes_turned_over(node: Node) -> None:
    chance = random.Random(SEED)
    good = [
        (STATUS, report_of(reported(type="float", timestamp=str(now_ms())), reported("setpoint", "5"))),
        (STATES, state_of("online")),
        (REGISTER, mapper_of()),
    ]
    allowed = {"", "UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    async with dialled(node) as channel, node.reporting():
        for number in range(600):
            method, request = good[number % len(good)]
            bad = bytearray(request)
            for _ in range(chance.randint(1, 4)):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            code, why = await called(channel, method, bytes(bad[: chance.randint(1, len(bad))]))
            assert code in allowed, (method, bytes(bad), why)
            assert "Traceback" not in why
            if code == "UNKNOWN":
                assert "DecodeError" in why, (method, bytes(bad), why)


async def test_names_that_nobody_has_are_not_kept(node: Node) -> None:
    """Whoever is refused a thousand times costs no memory."""
    async with dialled(node) as channel:
        for _ in range(20):
            await called(channel, STATUS, report_of(reported(), name=LONG))
        before = node.rss_mb
        for number in range(1000):
            name = f"{number}{LONG[:100_000]}"
            assert (await called(channel, STATUS, report_of(reported(), name=name)))[0] == "NOT_FOUND"
    assert node.rss_mb - before < MOST_GROWTH_MB


# What local apps say

REFUSALS: Final = (
    (f"{TWIN}/update", b'{"event_id":"e","twin":{"temperature":{"actual":{"value":7}}}}', "'temperature': actual"),
    (f"{TWIN}/update", b'{"event_id":"e","twin":{"wetness":{"actual":{"value":"1"}}}}', "wetness"),
    (f"$hw/events/device/{TARGET}/state/update", b'{"event_id":"e","state":"dead"}', "state"),
)


async def asked(local: App, topic: str, payload: bytes, count: int = 1) -> Any:
    await local.publish(topic, payload)
    return msgspec.json.decode(await local.hears(f"{topic}/result", count))


async def until_answered(local: App) -> None:
    """Whatever was said before has been heard by edge core too, once this is answered."""
    topic = "$hw/events/node/edge-1/membership/get"
    async with asyncio.timeout(60):
        local.heard.clear()
        while not any(b'"the last"' in one for one in local.on(f"{topic}/result")):
            await local.publish(topic, b'{"event_id":"the last"}')
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[App]:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
    async with app(port, "$hw/events/#") as local:
        await until_answered(local)
        yield local


@pytest.mark.slow
async def test_messages_of_apps(node: Node, port: int) -> None:
    async with connected(port) as local:
        for topic, payload, place in REFUSALS:
            answer = await asked(local, topic, payload, len(local.on(f"{topic}/result")) + 1)
            assert (answer["event_id"], answer["code"]) == ("e", 400), answer
            assert place in answer["reason"]
        for payload in CORPUS:  # once before memory is measured
            await local.publish(TOPICS[0], payload)
        await until_answered(local)
        before = node.rss_mb
        async with node.reporting():
            for topic in TOPICS:
                for payload in CORPUS:
                    await local.publish(topic, payload)
            await until_answered(local)
        assert node.rss_mb - before < MOST_GROWTH_MB
        assert await node.count("kubetwin_edgecore_app_requests_total") > len(CORPUS)
        local.heard.clear()
        await local.publish(f"{TWIN}/update", b'{"event_id":"good","twin":{"setpoint":{"expected":{"value":"5"}}}}')
        await until(lambda: any(b'"good"' in p for p in local.on(f"{TWIN}/update/result")), "a good one is answered")
    assert max(map(len, node.edge.log)) < 3000


# Rows of the database

UPLOAD: Final = new_message(source="bus", group="user", operation="upload", resource="target", content="x")

GARBAGE: Final[dict[str, dict[str, Any]]] = {
    "other type": {"TEXT": b"\x00\xff\x10", "INTEGER": "soon", "BLOB": "text"},
    "nothing": {"TEXT": "", "INTEGER": 0, "BLOB": b""},
    "no UTF-8": {"TEXT": "CAST(x'ff31' AS TEXT)", "INTEGER": 2**63 - 1, "BLOB": b"\xff\xfe"},
    "out of range": {"TEXT": LONG[:100_000], "INTEGER": -(2**63), "BLOB": b"[" * 5000},
    "odd": {"TEXT": "a/b\0'\"\n{}", "INTEGER": 2**53, "BLOB": b'{"metadata":7}'},
}


def spoil(file: Path, garbage: dict[str, Any]) -> int:
    """For each column of each table a copy of a good row in which that column is garbage; how many."""
    spoilt = 0
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = db.execute(f"PRAGMA table_info({table})").fetchall()
            if table == "outbox_size":  # the one row itself; it is counted anew
                values = [garbage["INTEGER"]] * 2
                db.execute("UPDATE outbox_size SET messages = ?, bytes = ?", values)
                spoilt += 2
                continue
            key = next(name for name in ("device", "name", "topic", "key") if name in {c[1] for c in columns})
            row = db.execute(f"SELECT * FROM {table} WHERE {key} LIKE '%target%' OR {key} LIKE '%mapper%'").fetchone()
            assert row is not None, table
            for number, (_, name, type_, *_) in enumerate(columns):
                values = list(row)
                bad = f"bad-{name}" if table == "object" else f"default/bad-{name}"
                values[[column[1] for column in columns].index(key)] = bad
                if table == "outbox":
                    values[0] = None  # the next number
                if name == "number" and not isinstance(garbage[type_], int):
                    continue  # SQLite itself takes nothing else there
                values[number] = garbage[type_]
                raw = isinstance(values[number], str) and values[number].startswith("CAST")
                marks = ["?"] * len(values)
                if raw:
                    marks[number] = values.pop(number)
                db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join(marks)})", values)
                spoilt += 1
    return spoilt


@pytest.mark.slow
@pytest.mark.parametrize("kind", GARBAGE)
async def test_rows_that_make_no_sense(
    kind: str, node: Node, edge_process: Callable[[], EdgeProcess], mapper: FakeMapper
) -> None:
    for name in (STEADY, TARGET):
        await mapper.report(name, temperature="21.5", setpoint="5")
        await mapper.client.report_state(DeviceId(name), "online")
        await node.cloud.until_value(name, "temperature", "21.5")
        await node.cloud.until_state(name, "online")
    assert await node.end() == 0
    async with open_database(node.database) as database:  # one of each, and closed as it should be
        await database.run(lambda db: db.execute("INSERT INTO mqtt_topic VALUES ('target')") and None)
        await database.run(lambda db: put_kept(db, encode(UPLOAD), key="target", max_messages=9, max_bytes=9999))
    assert spoil(node.database, GARBAGE[kind]) > 40
    node.edge = edge_process()
    await node.edge.start()
    assert not list(node.database.parent.glob("*damaged*")), "a bad row is no damaged file"
    await mapper.register()
    async with node.reporting():
        assert (await get(node.api, f"/v1/devices/{STEADY}"))[0] == 200
        status, listed = await get(node.api, "/v1/devices")
        assert status == 200
        assert {STEADY, TARGET} <= {device["device"] for device in listed["devices"]}
        for device in listed["devices"]:
            name = device["device"]
            with contextlib.suppress(Exception):  # what is no name of a device is refused
                await mapper.report(name, temperature="1", setpoint="2")
            await get_text(node.api, f"/v1/devices/{name if name.isascii() else 'x/y'}".replace(" ", "%20"))
        await mapper.report(TARGET, temperature="22")
        await node.cloud.until_value(TARGET, "temperature", "22")
    assert not [line for line in node.edge.log if "Traceback" in line], "\n".join(node.edge.log[-30:])
    assert await node.end() == 0
