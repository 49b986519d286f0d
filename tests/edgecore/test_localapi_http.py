"""The local API of a running edge core, over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket as sockets
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge.message import now_ms
from dmi import DeviceId
from dmi.web.http import HttpError
from edgecore.config import EdgeCoreConfig, HistoryConfig, LocalApiConfig
from edgecore.localapi.api import MAX_PAGE
from edgecore.localapi.params import read_limit, read_query, read_since
from edgecore.localapi.views import shown_quality
from tests.edgecore.api_client import get, get_text, raw
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import DEADLINE_S, NODE, FakeCloud, FakeMapper, desired_twin, device_object, model_object

BOILER = "default/boiler-1"


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "edgecore.sock"


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    """With history on."""
    modules = config.modules
    twin = msgspec.structs.replace(modules.device_twin, history=HistoryConfig(enable=True))
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(modules, device_twin=twin))


async def until(socket: Path, target: str, condition: Any) -> Any:
    """The answer, once it is as asked."""
    body: Any = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                _, body = await get(socket, target)
                if condition(body):
                    return body
                await asyncio.sleep(0.02)
    raise AssertionError(f"never as expected: {body}")


async def test_the_socket_is_there_for_its_group_and_gone_afterwards(config: EdgeCoreConfig, api: Path) -> None:
    api.write_text("left by a process that was killed")
    edge = Edge(config)
    await edge.start()
    try:
        assert stat.S_IMODE(api.stat().st_mode) == 0o660
        assert (await get(api, "/healthz"))[0] == 200
    finally:
        await edge.stop()
    assert not api.exists()
    assert not list(api.parent.glob(".edgecore.sock*"))


async def test_it_can_be_elsewhere_or_off(config: EdgeCoreConfig, api: Path, tmp_path: Path) -> None:
    def with_api(settings: LocalApiConfig) -> Edge:
        return Edge(
            msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, local_api=settings))
        )

    edge = with_api(LocalApiConfig(socket=str(tmp_path / "sub" / "api.sock")))
    await edge.start()
    assert (await get(tmp_path / "sub" / "api.sock", "/healthz"))[0] == 200
    await edge.stop()
    edge = with_api(LocalApiConfig(enable=False))
    await edge.start()
    assert not api.exists()
    await edge.stop()


async def test_a_socket_that_cannot_be_had_stops_nothing(
    config: EdgeCoreConfig, api: Path, mapper: FakeMapper, caplog: pytest.LogCaptureFixture
) -> None:
    api.mkdir()
    edge = Edge(config)
    await edge.start()
    async with mapper.running():
        pass
    await edge.stop()
    assert "the local API cannot be served" in caplog.text


async def test_health_and_readiness(edge: Edge, cloud: FakeCloud, api: Path) -> None:
    status, body = await get(api, "/healthz")
    assert (status, body["status"], body["node"]) == (200, "ok", NODE)
    assert body["uptime_s"] >= 0
    body = await until(api, "/readyz", lambda b: b["cloud"]["connected"])
    assert body["status"] == "ok"
    assert body["cloud"]["trouble"] == ""
    since = body["cloud"]["since"]
    assert now_ms() - 60_000 < since <= now_ms()
    await cloud.stop()
    body = await until(api, "/readyz", lambda b: "is cloudcore running" in b["cloud"]["trouble"])
    assert body["status"] == "ok"
    assert body["cloud"]["connected"] is False
    assert body["cloud"]["since"] >= since
    assert (await get_text(api, "/readyz"))[0] == 200


async def test_devices_page_by_page(edge: Edge, cloud: FakeCloud, api: Path) -> None:
    await cloud.put(model_object())
    names = [f"default/d{number}" for number in range(7)]
    for name in names:
        await cloud.put(device_object(name.split("/")[1]))
    seen: list[str] = []
    target = "/v1/devices?limit=3"
    while True:
        _, body = await until_ok(api, target)
        seen += [line["device"] for line in body["devices"]]
        if not body["next"]:
            break
        target = f"/v1/devices?limit=3&after={body['next']}"
    assert seen == names
    line = body["devices"][0]
    assert (line["protocol"], line["model"], line["mapper"]) == ("modbus", "default/boiler", "")
    assert (await get(api, "/v1/devices?namespace=other"))[1] == {"devices": [], "next": ""}
    assert (await get(api, "/v1/devices?namespace=default&limit=7"))[1]["next"] == ""


async def until_ok(socket: Path, target: str) -> tuple[int, Any]:
    status, body = await get(socket, target)
    assert status == 200, body
    return status, body


async def test_a_device_with_its_twins(edge: Edge, boiler: FakeMapper, cloud: FakeCloud, api: Path) -> None:
    at = now_ms()
    await boiler.client.report_state(DeviceId(BOILER), "online")
    await boiler.report(BOILER, at_ms=at, temperature="21.5")
    await boiler.client.report_twins(DeviceId(BOILER), [desired_twin("setpoint", "30", at_ms=at)])
    await cloud.until_value(BOILER, "setpoint", "30")
    body = await until(api, f"/v1/devices/{BOILER}", lambda b: all(t["confirmed"] for t in b["twins"]))
    assert (body["state"], body["mapper"], body["problem"]) == ("online", "mapper-1", "")
    assert at - 60_000 < body["since"] <= now_ms()
    temperature, setpoint = body["twins"]
    assert temperature == {
        "property": "temperature",
        "type": "float",
        "collected": at,
        "value": "21.5",
        "quality": "good",
        "confirmed": True,
    }
    assert setpoint["desired"] == {"value": "30", "write": "applied", "updated": at}
    await boiler.client.report_state(DeviceId(BOILER), "offline", "no answer")
    body = await until(api, f"/v1/devices/{BOILER}", lambda b: b["state"] == "offline")
    assert body["reason"] == "no answer"
    assert [t["quality"] for t in body["twins"]] == ["stale", "stale"]


async def test_a_property_that_was_never_read_is_listed(edge: Edge, boiler: FakeMapper, api: Path) -> None:
    _, body = await get(api, f"/v1/devices/{BOILER}")
    assert body["twins"] == [{"property": "temperature", "collected": 0}, {"property": "setpoint", "collected": 0}]


async def test_history_over_the_api(edge: Edge, boiler: FakeMapper, api: Path) -> None:
    at = now_ms()
    for number in range(5):
        await boiler.report(BOILER, at_ms=at + number, temperature=str(number), setpoint="1")
    base = f"/v1/devices/{BOILER}/history"
    body = await until(api, f"{base}?property=temperature", lambda b: len(b["values"]) == 5)
    assert body == {
        "values": [
            {"property": "temperature", "value": str(n), "type": "float", "collected": at + n, "quality": "good"}
            for n in (4, 3, 2, 1, 0)
        ],
        "truncated": False,
    }
    _, body = await get(api, f"{base}?limit=2&since={at + 1}&property=temperature")
    assert ([v["value"] for v in body["values"]], body["truncated"]) == (["4", "3"], True)
    assert len((await get(api, f"{base}?since=1h"))[1]["values"]) == 6
    await edge.stop()
    await edge.start()
    assert len((await get(api, f"{base}?limit=100"))[1]["values"]) == 6


async def test_without_history_it_says_how_to_get_it(config: EdgeCoreConfig, cloud: FakeCloud, api: Path) -> None:
    twin = msgspec.structs.replace(config.modules.device_twin, history=HistoryConfig())
    off = msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, device_twin=twin))
    edge = Edge(off)
    await edge.start()
    await cloud.put(device_object())
    status, body = await get(api, f"/v1/devices/{BOILER}/history")
    await edge.stop()
    assert status == 404
    assert "modules.deviceTwin.history.enable" in body["error"]
    assert not (api.parent / "history.db").exists()


@pytest.mark.parametrize(
    ("target", "status", "words"),
    (
        ("/v1/devices/default/nothing", 404, "default/nothing is not on this node"),
        ("/v1/devices/default/nothing/history", 404, "default/nothing"),
        ("/v1/devices/default", 404, "no such path"),
        ("/v1/devices/default/a%2Fb", 400, "no namespace and name"),
        (f"/v1/devices/default/{'x' * 300}", 400, "no namespace and name"),
        ("/v1/devices?limit=0", 400, "limit='0' is no number from 1"),
        (f"/v1/devices?limit={MAX_PAGE + 1}", 400, "limit="),
        ("/v1/devices?limit=1&limit=2", 400, "'limit' is given twice"),
        ("/v1/devices?order=name", 400, "'order' is not one of after, limit, namespace"),
        ("/v1/devices?after=%ff", 400, "the query cannot be read"),
        (f"/v1/devices/{BOILER}/history?since=yesterday", 400, "since='yesterday'"),
        (f"/v1/devices/{BOILER}?x", 400, "'x'"),
    ),
)
async def test_what_is_wrong_is_named(
    edge: Edge, boiler: FakeMapper, api: Path, target: str, status: int, words: str
) -> None:
    got, body = await get(api, target)
    assert (got, words in body["error"]) == (status, True), body
    assert list(body) == ["error"]


@pytest.mark.parametrize("method", ("POST", "PUT", "DELETE", "PATCH"))
async def test_nothing_can_be_changed(edge: Edge, boiler: FakeMapper, api: Path, method: str) -> None:
    for target in ("/v1/devices", f"/v1/devices/{BOILER}", "/healthz"):
        status, body = await get_text(api, target, method)
        assert status == 405
        assert "GET" in msgspec.json.decode(body)["error"]


async def test_broken_and_slow_clients_cost_nothing_else(edge: Edge, boiler: FakeMapper, api: Path) -> None:
    held = []
    for _ in range(20):  # say nothing, or half a request
        client = sockets.socket(sockets.AF_UNIX)
        client.connect(str(api))
        client.sendall(b"GET /v1/dev")
        held.append(client)
    for garbage in (b"\x00\xff\x16\x03\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"x" * 100_000 + b"\r\n\r\n"):
        with contextlib.suppress(ConnectionError):
            assert b" 4" in (await raw(api, garbage))[:14] or b"505" in (await raw(api, garbage))[:14]
    await boiler.report(BOILER, temperature="1")
    assert (await get(api, f"/v1/devices/{BOILER}"))[0] == 200
    for client in held:
        client.close()


async def test_metrics_are_prometheus_text(edge: Edge, boiler: FakeMapper, api: Path) -> None:
    await boiler.report(BOILER, temperature="1")
    await get(api, "/v1/devices/no/such")
    status, text = await get_text(api, "/metrics")
    assert status == 200
    samples = dict(re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE))
    assert float(samples["kubetwin_edgecore_devices"]) == 1
    assert float(samples['kubetwin_edgecore_api_responses_total{code="404"}']) == 1
    assert float(samples["process_resident_memory_bytes"]) > 10**6
    assert float(samples["kubetwin_edgecore_history_failing"]) == 0
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(samples), "every line is a sample, and none is there twice"
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    for name, kind in kinds:
        assert name.startswith(("kubetwin_edgecore_", "process_")), name
        assert (kind == "counter") == name.endswith("_total"), name
    assert len(dict(kinds)) == len(kinds)


async def test_calls_to_mappers_are_counted(edge: Edge, boiler: FakeMapper, cloud: FakeCloud, api: Path) -> None:
    boiler.refusing = "no such register"
    await cloud.put(device_object("boiler-2"))
    await cloud.until_state("default/boiler-2", "unhealthy")
    boiler.refusing = ""
    await boiler.until_device("boiler-2")
    await cloud.delete("Device", "default", "boiler-2")
    await boiler.until(lambda: ("remove", "default/boiler-2") in boiler.calls)
    calls = r'^kubetwin_edgecore_mapper_calls_total\{rpc="(\w+)",mapper="modbus/mapper-1",outcome="(\w+)"\} (\d+)$'
    async with asyncio.timeout(10):
        while True:
            _, text = await get_text(api, "/metrics")
            counted = {(rpc, how): int(count) for rpc, how, count in re.findall(calls, text, re.MULTILINE)}
            if ("RemoveDevice", "ok") in counted:  # it is counted once the answer is here
                break
            await asyncio.sleep(0.02)
    assert counted[("RegisterDevice", "refused")] >= 1
    assert counted[("UpdateDevice", "ok")] == 1  # tried again, for it may have taken it
    assert counted[("RemoveDevice", "ok")] == 1


@given(st.text(max_size=40))
def test_parameters_never_fail_in_another_way(text: str) -> None:
    for read in (
        lambda: read_query(text, ("a", "b")),
        lambda: read_limit({"limit": text}, default=5, most=10),
        lambda: read_since({"since": text}, now_ms=10**12),
    ):
        with contextlib.suppress(HttpError):
            read()


def test_since_is_a_time_or_a_time_ago() -> None:
    now = 1_800_000_000_000
    assert read_since({}, now_ms=now) == 0
    assert read_since({"since": "90s"}, now_ms=now) == now - 90_000
    assert read_since({"since": "2h"}, now_ms=now) == now - 7_200_000
    assert read_since({"since": "1d"}, now_ms=now) == now - 86_400_000
    assert read_since({"since": "1700000000000"}, now_ms=now) == 1_700_000_000_000
    assert read_since({"since": "999999999d"}, now_ms=now) == 0


def test_good_is_stale_where_nobody_hears_the_device() -> None:
    assert shown_quality("online", "good") == "good"
    assert shown_quality("unhealthy", "good") == "good"
    assert {shown_quality(state, "good") for state in ("offline", "unknown", "")} == {"stale"}
    assert shown_quality("offline", "bad") == "bad"
