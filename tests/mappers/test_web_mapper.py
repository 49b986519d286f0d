"""The web of a mapper that really runs: what it shows and does is what the device, the edge core and the loop do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dmi.ports import MapperInfo
from dmi.types import DeviceId, DeviceMethod
from mappers.sdk import DeviceTimeout, Property, ReadResult
from mappers.sdk.driver import AnyDriver
from mappers.sdk.mapper import Mapper, run_mapper
from mappers.sdk.testing import FakeEdgeCore
from mappers.sdk.watchdog import watch_loop
from mappers.sdk.web import WebServer, serve_web
from mappers.sdk.web.views import MapperView
from tests.mappers.mapper_world import (
    MODEL,
    MemoryConfig,
    MemoryDevice,
    MemoryDriver,
    MemoryLink,
    MemoryVisitor,
    memory_device,
    prop,
)
from tests.mappers.web_world import in_thread, mapper_config, until

ID = DeviceId("plant/m1")
DEVICE = msgspec.structs.replace(
    memory_device(prop("target", cell="a"), prop("level", cell="b")),
    methods=(DeviceMethod("SetTarget", property_names=("target",)),),
)


@asynccontextmanager
async def served_mapper(
    edge: FakeEdgeCore, driver: AnyDriver, *, registered: bool = True
) -> AsyncIterator[tuple[WebServer, Mapper]]:
    """A mapper that runs, and the server of it."""
    mappers: list[Mapper] = []
    views: Sequence[MapperView] = mappers
    stop = asyncio.Event()
    info = MapperInfo("m", driver.protocol, "local:m")
    async with AsyncExitStack() as stack:
        watchdog = await stack.enter_async_context(watch_loop([driver]))
        server = await stack.enter_async_context(serve_web(mapper_config(), views, watchdog=watchdog))
        assert server is not None
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        tasks.create_task(run_mapper(driver, info, edge.dmi, stop, started=mappers.append), name="mapper")
        stack.callback(stop.set)
        await until(lambda: bool(mappers) and mappers[0].registration.registered == registered)
        yield server, mappers[0]


async def call(server: WebServer, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    def blocking() -> tuple[int, str]:
        client = HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            client.request(method, path, body, {"Content-Type": "application/json"})
            response = client.getresponse()
            return response.status, response.read().decode()
        finally:
            client.close()

    return await in_thread(blocking)


async def metric(server: WebServer, name: str, **labels: str) -> float:
    _, text = await call(server, "GET", "/metrics")
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_device_is_read_written_and_counted(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1, b=2)
    edge = FakeEdgeCore(devices=[DEVICE], models=[MODEL])
    async with edge, served_mapper(edge, MemoryDriver(m1=memory)) as (server, _):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        memory.cells["b"] = 77
        status, text = await call(server, "GET", "/api/v1/device/plant/m1/level")
        data: dict[str, Any] = json.loads(text)["Data"]
        assert status == 200
        assert (data["Value"], data["Type"], data["Namespace"], data["DeviceName"]) == ("77", "int", "plant", "m1")
        assert abs(data["TimeStamp"] - time.time() * 1000) < 60_000

        assert (await call(server, "PUT", "/api/v1/device/plant/m1/target", '{"value": 33}'))[0] == 200
        assert memory.cells["a"] == 33
        await edge.until(lambda: edge.value(ID, "target") == "33")
        assert (await call(server, "GET", "/api/v1/devicemethod/plant/m1/SetTarget/target/44"))[0] == 200
        assert memory.cells["a"] == 44

        for path, body, expected in (
            ("/api/v1/device/plant/m1/target", '{"value": 101}', 400),  # above the maximum
            ("/api/v1/device/plant/m1/level", '{"value": 1}', 400),  # ReadOnly
            ("/api/v1/device/plant/m1/none", '{"value": 1}', 404),
        ):
            assert (await call(server, "PUT", path, body))[0] == expected
        assert (await call(server, "GET", "/api/v1/devicemethod/plant/m1/SetTarget/level/1"))[0] == 404
        assert (memory.cells["a"], memory.cells["b"]) == (44, 77)

        memory.write_fault = DeviceTimeout(ID, "no reply")
        assert (await call(server, "PUT", "/api/v1/device/plant/m1/target", '{"value": 1}'))[0] == 504
        memory.read_fault = DeviceTimeout(ID, "no reply")
        assert (await call(server, "GET", "/api/v1/device/plant/m1/target"))[0] == 504

        device = {"device": "plant/m1", "mapper": "m", "protocol": "memory"}
        assert await metric(server, "kubetwin_mapper_reads_total", **device) >= 1
        assert await metric(server, "kubetwin_mapper_writes_total", **device) >= 3
        assert await metric(server, "kubetwin_mapper_write_failures_total", **device) >= 1
        assert await metric(server, "kubetwin_mapper_read_seconds_count", mapper="m") >= 1
        assert await metric(server, "kubetwin_mapper_reports_total", mapper="m") >= 1
        assert await metric(server, "kubetwin_mapper_device_state", **device) == 1
        assert 0 < await metric(server, "kubetwin_mapper_report_lag_seconds", **device) < 60


async def test_histogram_of_reads_keeps_what_devices_that_are_gone_counted() -> None:
    edge = FakeEdgeCore(devices=[DEVICE], models=[MODEL])
    async with edge, served_mapper(edge, MemoryDriver(m1=MemoryDevice(a=1, b=2))) as (server, mapper):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        before = await metric(server, "kubetwin_mapper_read_seconds_count", mapper="m")
        await mapper.fleet.remove_device(ID)
        assert await metric(server, "kubetwin_mapper_devices", mapper="m") == 0
        assert await metric(server, "kubetwin_mapper_read_seconds_count", mapper="m") >= before >= 1
        assert (await call(server, "GET", "/api/v1/device/plant/m1/target"))[0] == 404


async def test_readiness_follows_the_registration() -> None:
    edge = FakeEdgeCore(devices=[DEVICE], models=[MODEL])
    async with served_mapper(edge, MemoryDriver(m1=MemoryDevice(a=1, b=2)), registered=False) as (server, mapper):
        assert (await call(server, "GET", "/readyz"))[0] == 503
        assert (await call(server, "GET", "/healthz"))[0] == 200
        async with edge:
            await until(lambda: bool(mapper.registration.registered))
            assert (await call(server, "GET", "/readyz"))[0] == 200


class SleepyLink(MemoryLink):
    async def read_many(self, properties: Sequence[Property[MemoryVisitor]]) -> Mapping[str, ReadResult]:
        time.sleep(1.0)  # noqa: ASYNC251  # the mistake this is about
        return await super().read_many(properties)


class SleepyDriver(MemoryDriver):
    protocol = "sleepy"

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: MemoryConfig) -> AsyncIterator[MemoryLink]:
        yield SleepyLink(self._devices[config.name])


async def test_driver_that_blocks_the_loop_is_named_in_log_and_metrics(caplog: pytest.LogCaptureFixture) -> None:
    device = msgspec.structs.replace(DEVICE, protocol="sleepy", properties=(prop("level", cell="b", cycle_ms=3000),))
    edge = FakeEdgeCore(devices=[device], models=[MODEL])
    async with edge, served_mapper(edge, SleepyDriver(m1=MemoryDevice(b=2))) as (server, _):
        await until(lambda: "blocked the loop" in caplog.text)
        assert await metric(server, "kubetwin_mapper_loop_blocks_total", protocol="sleepy") >= 1
        assert await metric(server, "kubetwin_mapper_loop_blocked_seconds_total", protocol="sleepy") > 0.25
    (message, *_) = [r.getMessage() for r in caplog.records if r.name == "mappers.sdk.watchdog"]
    assert message.startswith("driver sleepy blocked the loop for ")
    assert "tests/mappers/test_web_mapper.py:" in message
    assert message.endswith("read_many (device plant/m1)")
