"""The data plane from declaration to delivery, over a real HTTP server that comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from dmi.types import DeviceId
from mappers.sdk.samples import Sample
from mappers.sdk.sinks import DataPlane
from mappers.sdk.sinks import sink as sink_module
from tests.mappers.sink_world import DEVICE, Collector, collector, device, plane, sample, until


@pytest.fixture
async def server() -> AsyncIterator[Collector]:
    async with collector() as running:
        yield running


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.02, 0.1))


def http(server: Collector, path: str = "/in") -> dict[str, object]:
    return {"http": {"hostName": "http://127.0.0.1", "port": server.port, "requestPath": path}}


def values(server: Collector) -> list[int]:
    return [int(dict(parse_qsl(body.decode()))["flow"]) for body in server.bodies]


async def test_a_sample_is_sent_at_once_and_nothing_touches_the_disk(server: Collector, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with plane(folder) as data:
        assert data.declare(device(http(server))) == []
        for number in range(20):
            data.put(sample(number))
        await until(lambda: len(server.requests) == 20, "all arrive")
        await until(lambda: data.stats()[0].sent == 20, "all are counted")
        assert values(server) == list(range(20))
        (stats,) = data.stats()
        assert (stats.waiting, stats.failed, stats.dropped, stats.up, stats.lag_s) == (0, 0, {}, True, 0.0)
        assert not folder.exists()


async def test_what_has_no_push_method_is_passed_over(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path) as data:
        assert not data.declare(device(None))
        data.put(sample(1))
        assert data.stats() == []


async def test_a_cut_loses_nothing_and_what_waited_follows_in_order(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server)))
        data.put(sample(0))
        await until(lambda: data.stats()[0].sent == 1, "the first arrives")
        await server.stop()
        for number in range(1, 1001):
            data.put(sample(number))
        await until(lambda: data.stats()[0].file, "samples wait on disk")
        (stats,) = data.stats()
        assert not stats.up
        assert stats.problem
        assert stats.lag_s > 0 or stats.waiting
        (file,) = (tmp_path / "data").glob("*.db")
        assert file.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        await server.start()
        await until(lambda: data.stats()[0].waiting == 0, "the backlog is sent")
        got = values(server)
        assert sorted(set(got)) == list(range(1001))
        assert list(dict.fromkeys(got)) == sorted(set(got)), "in order"
        assert data.stats()[0].up
        await until(lambda: not file.exists(), "the file is gone with its last sample")


async def test_live_samples_do_not_wait_for_the_backlog(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server)))
        await server.stop()
        for number in range(3000):
            data.put(sample(number))
        await until(lambda: data.stats()[0].waiting == 3000, "all wait")
        await until(lambda: data.stats()[0].file, "on disk")
        server.requests.clear()
        await server.start()
        await until(lambda: data.stats()[0].up, "it is back")
        data.put(sample(999_999))
        await until(lambda: 999_999 in values(server), "the live sample arrives")
        assert len(server.requests) < 3000, "before the backlog is through"
        await until(lambda: data.stats()[0].waiting == 0, "the backlog is sent")
        assert set(values(server)) == {*range(3000), 999_999}


async def replaying_while_a_live_sample_is_under_way(server: Collector, data: DataPlane) -> None:
    """3,000 samples waited; the server is back, and takes its time over a live one."""
    data.declare(device({"dbMethod": {"influxdb2": {
        "influxdb2ClientConfig": {"url": server.url, "org": "o", "bucket": "b"},
        "influxdb2DataConfig": {"measurement": "m", "fieldKey": "f"},
    }}}))  # fmt: skip
    await server.stop()
    for number in range(3000):
        data.put(sample(number))
    await until(lambda: data.stats()[0].file and data.stats()[0].waiting == 3000, "all wait on disk")
    server.gate, server.held = asyncio.Event(), lambda body: b'"live"' in body
    await server.start()
    await until(lambda: data.stats()[0].up, "it is back")
    data.put(sample(0, value="live"))


async def test_the_replay_pauses_while_a_live_sample_is_under_way(
    server: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "YIELD_S", 60.0)
    async with plane(tmp_path / "data") as data:
        await replaying_while_a_live_sample_is_under_way(server, data)
        await asyncio.sleep(0.2)  # for the part of the backlog that was on its way
        before = data.stats()[0].waiting
        assert before > 1000
        await asyncio.sleep(0.5)
        assert data.stats()[0].waiting == before
        assert server.gate is not None
        server.gate.set()
        await until(lambda: data.stats()[0].waiting == 0, "then it goes on")


async def test_the_replay_of_a_sink_that_is_never_idle_comes_to_its_end(
    server: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "YIELD_S", 0.01)
    async with plane(tmp_path / "data") as data:
        await replaying_while_a_live_sample_is_under_way(server, data)
        await until(lambda: data.stats()[0].waiting == 1, "all but the live one is sent")
        assert server.gate is not None
        server.gate.set()


async def test_stopping_while_the_sink_is_away_keeps_everything_for_the_next_run(
    server: Collector, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    async with plane(folder) as data:
        data.declare(device(http(server)))
        await server.stop()
        for number in range(50):
            data.put(sample(number))
    assert list(folder.glob("*.db"))
    await server.start()
    async with plane(folder) as data:  # not declared: what the device had to say is still sent
        await until(lambda: len(server.requests) >= 50, "the backlog arrives")
        await until(lambda: not data.stats(), "a sink that nobody declares is closed")
    assert values(server) == list(range(50))
    assert not list(folder.iterdir())


async def test_being_stopped_while_starting_leaves_nothing_running(
    server: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    await server.stop()
    async with plane(folder) as data:
        for path in ("/a", "/b"):
            data.declare(device(http(server, path), name=f"meter-{path[1:]}"))
            data.put(Sample(DeviceId(f"plant/meter-{path[1:]}"), "flow", "1", "float", 0))
    assert len(list(folder.glob("*.db"))) == 2
    loading, forever = asyncio.Event(), asyncio.Event()

    async def load(_sink: object) -> None:
        loading.set()
        await forever.wait()

    monkeypatch.setattr(sink_module.Sink, "load", load)
    before = asyncio.all_tasks()
    starting = asyncio.create_task(plane(folder).__aenter__())
    await loading.wait()
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert asyncio.all_tasks() == before
    assert len(list(folder.glob("*.db"))) == 2


async def test_stopping_sends_what_is_under_way_or_keeps_it(server: Collector, tmp_path: Path) -> None:
    server.gate = asyncio.Event()
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server)))
        for number in range(30):
            data.put(sample(number))
        await asyncio.sleep(0.05)
    server.gate.set()
    async with plane(tmp_path / "data") as data:
        await until(lambda: set(values(server)) == set(range(30)), "nothing is lost")


async def test_an_idle_connection_that_the_server_closed_is_no_failure(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server)))
        data.put(sample(1))
        await until(lambda: data.stats()[0].sent == 1, "the first arrives")
        await server.stop()
        await server.start()
        data.put(sample(2))
        await until(lambda: data.stats()[0].sent == 2, "the second arrives")
        assert data.stats()[0].up
        assert not (tmp_path / "data").exists()


async def test_a_refused_sample_is_dropped_counted_and_holds_up_no_other(
    server: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.decide = lambda path, body: (400, b"no thirteen") if b"flow=13&" in body else (200, b"")
    async with plane(tmp_path) as data:
        data.declare(device(http(server)))
        for number in range(20):
            data.put(sample(number))
        await until(lambda: data.stats()[0].sent == 19, "the others arrive")
        assert data.stats()[0].dropped == {"rejected": 1}
        assert "no thirteen" in caplog.text


async def test_a_server_in_trouble_is_tried_again(server: Collector, tmp_path: Path) -> None:
    server.answer = (503, b"")
    async with plane(tmp_path) as data:
        data.declare(device(http(server)))
        data.put(sample(1))
        await until(lambda: len(server.requests) >= 3, "it is tried again")
        assert data.stats()[0].sent == 0
        server.answer = (204, b"")
        await until(lambda: data.stats()[0].sent == 1, "it arrives")


@pytest.mark.parametrize("status", (301, 302, 307))
async def test_a_redirect_is_neither_followed_nor_taken_for_success(
    server: Collector, tmp_path: Path, status: int
) -> None:
    """It could lose the body, and would hand the token to whoever the answer names."""
    async with collector() as elsewhere, plane(tmp_path, {"HTTP_TOKEN": "secret-of-the-first"}) as data:
        server.answer = (status, b"")
        server.headers = {"Location": f"{elsewhere.url}/stolen"}
        data.declare(device(http(server)))
        data.put(sample(1))
        await until(lambda: data.stats()[0].failed >= 2, "it counts as a failure")
        assert data.stats()[0].sent == 0
        assert not elsewhere.requests


async def test_a_dead_sink_costs_the_others_nothing(server: Collector, tmp_path: Path) -> None:
    push = {**http(server), "otel": {"endpointURL": "http://127.0.0.1:9"}}
    async with plane(tmp_path) as data:
        assert data.declare(device(push)) == []
        for number in range(50):
            data.put(sample(number))
        await until(lambda: len(server.requests) == 50, "all arrive at the one that lives")
        by_kind = {s.sink: s for s in data.stats()}
        assert by_kind["http"].up
        await until(lambda: not {s.sink: s for s in data.stats()}["otel"].up, "the other is known to be away")


async def test_properties_and_devices_share_the_sink_of_one_target(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path) as data:
        data.declare(device(http(server, "/a"), name="meter-1"))
        data.declare(device(http(server, "/a"), name="meter-2"))
        assert len(data.stats()) == 1
        data.put(sample(1))
        data.put(Sample(DeviceId("plant/meter-2"), "flow", "2", "float", 0))
        await until(lambda: len(server.requests) == 2, "both arrive")
        assert sorted((path, body.partition(b"&")[0]) for path, _, body in server.requests) == [
            ("/a", b"flow=1"), ("/a", b"flow=2"),
        ]  # fmt: skip


async def test_a_device_that_is_gone_still_has_its_say_and_the_sink_is_closed_after(
    server: Collector, tmp_path: Path
) -> None:
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server), cycle_ms=60_000))
        await server.stop()
        data.put(sample(1))
        data.put(sample(2))  # held back by the report cycle
        await until(lambda: not data.stats()[0].up, "the sink is away")
        data.forget(DEVICE)
        data.put(sample(3))
        await server.start()
        await until(lambda: values(server) == [1, 2], "what was said arrives, and nothing else")
        await until(lambda: not data.stats(), "the sink is closed")


async def test_report_cycle_lets_the_newest_through_once_a_cycle(server: Collector, tmp_path: Path) -> None:
    async with plane(tmp_path) as data:
        data.declare(device(http(server), cycle_ms=300))
        for number in range(10):
            data.put(sample(number))
        await until(lambda: len(server.requests) == 2, "the first, and the newest when the cycle ends")
        assert values(server) == [0, 9]


async def test_a_changed_declaration_moves_to_the_new_target(server: Collector, tmp_path: Path) -> None:
    async with collector() as other, plane(tmp_path) as data:
        data.declare(device(http(server)))
        data.put(sample(1))
        data.declare(device(http(other)))
        data.put(sample(2))
        await until(lambda: len(server.requests) == 1 and len(other.requests) == 1, "each gets its own")
        await until(lambda: len(data.stats()) == 1, "the old one is closed")
        assert (values(server), values(other)) == ([1], [2])


async def test_a_burst_beyond_the_queue_goes_to_disk_and_memory_stays_bounded(
    server: Collector, tmp_path: Path
) -> None:
    server.gate = asyncio.Event()
    async with plane(tmp_path / "data") as data:
        data.declare(device(http(server)))
        for number in range(6000):
            data.put(sample(number))
            if number % 500 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: data.stats()[0].file, "the excess waits on disk")
        server.gate.set()
        await until(lambda: data.stats()[0].waiting == 0, "all is sent", within_s=40)
        assert set(values(server)) == set(range(6000))
        assert data.stats()[0].dropped == {}


async def test_what_neither_disk_nor_memory_can_hold_is_dropped_oldest_first_counted_and_logged_once(
    server: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mappers.sdk.sinks.backlog.MEMORY_RECORDS", 100)
    monkeypatch.setattr("mappers.sdk.sinks.backlog._RETRY_S", (0.05, 0.1))
    folder = tmp_path / "data"
    folder.write_text("in the way")  # no folder can be made here
    async with plane(folder) as data:
        data.declare(device(http(server)))
        await server.stop()
        for number in range(150):
            data.put(sample(number))
            await asyncio.sleep(0)
        await until(lambda: not data.stats()[0].up, "the sink is away")
        for number in range(150, 1000):
            data.put(sample(number))
        await until(lambda: "samples wait in memory" in caplog.text, "it is said that the disk is of no use")
        (stats,) = data.stats()
        assert stats.dropped["memory"] + stats.waiting == 1000
        assert caplog.text.count("oldest samples are being lost") == 1
        await server.start()
        await until(lambda: data.stats()[0].waiting == 0, "what is in memory arrives")
        assert values(server)[-1] == 999
        folder.unlink()
        await server.stop()
        data.put(sample(1000))
        await until(lambda: data.stats()[0].file, "the disk is used again")
        await server.start()
        await until(lambda: 1000 in values(server), "and nothing of that is lost")
    assert [r.levelno for r in caplog.records if "cannot be used" in r.message or "in memory" in r.message] == [
        logging.ERROR
    ]


async def test_one_path_that_fails_holds_up_no_other_path_of_its_server(server: Collector, tmp_path: Path) -> None:
    server.decide = lambda path, body: (503 if path == "/a" else 200, b"")
    async with plane(tmp_path) as data:
        data.declare(device(http(server, "/a"), name="meter-1"))
        data.declare(device(http(server, "/b"), name="meter-2"))
        for number in range(20):
            data.put(sample(number))
            data.put(Sample(DeviceId("plant/meter-2"), "flow", str(number), "float", 0))
        await until(lambda: {s.target[-2:]: s.sent for s in data.stats()}["/b"] == 20, "the other path is served")


async def test_large_values_are_sent_in_small_batches_and_bounded_in_memory(server: Collector, tmp_path: Path) -> None:
    server.gate = asyncio.Event()
    async with plane(tmp_path / "data") as data:
        data.declare(device({"dbMethod": {"influxdb2": {
            "influxdb2ClientConfig": {"url": server.url, "org": "o", "bucket": "b"},
            "influxdb2DataConfig": {"measurement": "m", "fieldKey": "f"},
        }}}))  # fmt: skip
        (sink,) = data._sinks.values()
        for number in range(100):
            data.put(sample(number, value="x" * 100_000))
            await until(lambda: sink._backlog._bytes < 1_000_000, "the disk keeps up")
        await until(lambda: not sink._backlog._memory, "the excess is on disk")
        assert sum(len(r.sample.value) for r in sink._live) <= 1_000_000
        server.gate.set()
        await until(lambda: data.stats()[0].sent == 100, "all arrive")
        assert max(map(len, server.bodies)) < 1_300_000
        assert data.stats()[0].dropped == {}
