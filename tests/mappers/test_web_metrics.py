"""`/metrics` as Prometheus' own parser reads it, and the probes."""

from __future__ import annotations

import asyncio
import json
import math
import time

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dmi.web.exposition import Family, head, histogram_lines, label_text, sample_line
from dmi.web.http import Request
from mappers.sdk.stats import BUCKETS_S
from mappers.sdk.watchdog import watch_loop
from mappers.sdk.web.health import GRACE_S
from mappers.sdk.web.metrics import Metrics
from tests.mappers.web_world import DEVICE, CountedSinks, MemoryDevice, MemoryMapper, raw, served, until


async def scrape(port: int) -> dict[str, Metric]:
    answer = await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n")
    head_, _, body = answer.partition(b"\r\n\r\n")
    assert b"200 OK" in head_
    assert b"text/plain; version=0.0.4" in head_
    families = list(text_string_to_metric_families(body.decode()))
    names = [f.name for f in families]
    assert len(names) == len(set(names)), "a metric's samples stand together"
    return {f.name: f for f in families}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """Of the one sample with these labels among its own."""
    found = [
        s.value for f in families.values() for s in f.samples if s.name == name and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return float(found[0])


async def test_device_counters_have_their_names_and_labels() -> None:
    mapper = MemoryMapper()
    stats = mapper.pump.stats
    counted = {
        "reads": 11,
        "read_failures": 2,
        "writes": 5,
        "write_failures": 1,
        "overruns": 7,
        "reconnects": 3,
        "driver_errors": 4,
        "restarts": 6,
        "leaked_tasks": 8,
    }
    for name, count in counted.items():
        setattr(stats, name, count)
    stats.values_good, stats.values_bad = 100, 9
    mapper.pump.state = ("unhealthy", "a register is refused")
    async with served(mapper) as server:
        families = await scrape(server.port)
    labels = {"device": "plant/pump-1", "mapper": "memory-mapper", "protocol": "memory"}
    for name, count in counted.items():
        assert value(families, f"kubetwin_mapper_{name}_total", **labels) == count
        assert families[f"kubetwin_mapper_{name}"].type == "counter"
        assert families[f"kubetwin_mapper_{name}"].documentation
    assert value(families, "kubetwin_mapper_values_total", quality="good", **labels) == 100
    assert value(families, "kubetwin_mapper_values_total", quality="bad", **labels) == 9
    assert value(families, "kubetwin_mapper_device_state", state="unhealthy", **labels) == 1
    assert families["kubetwin_mapper_report_lag_seconds"].samples == []


async def test_report_lag_is_the_age_of_what_was_reported() -> None:
    mapper = MemoryMapper()
    mapper.pump.stats.reported_ms = int((time.time() - 90) * 1000)
    async with served(mapper) as server:
        assert 90 <= value(await scrape(server.port), "kubetwin_mapper_report_lag_seconds") < 150


async def test_mapper_has_its_queue_reports_and_read_histogram() -> None:
    mapper = MemoryMapper(*(MemoryDevice(msgspec.structs.replace(DEVICE, name=name)) for name in ("a", "b")), name="m")
    first, second = mapper.fleet.runners()
    first.stats.read_latency.observe(0.003)
    second.stats.read_latency.observe(0.003)
    second.stats.read_latency.observe(99.0)
    mapper.fleet.retired_latency.observe(0.0005)
    async with served(mapper) as server:
        families = await scrape(server.port)
    labels = {"mapper": "m", "protocol": "memory"}
    assert value(families, "kubetwin_mapper_queue_depth", **labels) == 3
    assert value(families, "kubetwin_mapper_reports_total", **labels) == 17
    assert value(families, "kubetwin_mapper_report_failures_total", **labels) == 2
    assert value(families, "kubetwin_mapper_devices", **labels) == 2
    assert value(families, "kubetwin_mapper_registered", **labels) == 1
    bucket = "kubetwin_mapper_read_seconds_bucket"
    assert value(families, bucket, le="0.001", **labels) == 1
    assert value(families, bucket, le="0.0025", **labels) == 1
    assert value(families, bucket, le="0.005", **labels) == 3
    assert value(families, bucket, le="+Inf", **labels) == 4
    assert value(families, "kubetwin_mapper_read_seconds_count", **labels) == 4
    assert value(families, "kubetwin_mapper_read_seconds_sum", **labels) == pytest.approx(99.0065)


async def test_sinks_are_counted_per_mapper_and_shared_ones_once() -> None:
    sinks = CountedSinks()
    mappers = (
        MemoryMapper(samples=sinks),
        MemoryMapper(name="second", samples=sinks),
        MemoryMapper(name="third"),
        MemoryMapper(name="fourth", samples=CountedSinks()),
    )
    async with served(*mappers) as server:
        families = await scrape(server.port)
    assert len(families["kubetwin_mapper_sink_up"].samples) == 2
    assert value(families, "kubetwin_mapper_sink_up", mapper="fourth") == 0
    labels = {"mapper": "memory-mapper", "sink": "mqtt", "target": 'tcp://broker:1883 "a\\b"'}
    assert value(families, "kubetwin_mapper_sink_up", **labels) == 0
    assert value(families, "kubetwin_mapper_sink_sent_total", **labels) == 50
    assert value(families, "kubetwin_mapper_sink_failures_total", **labels) == 4
    assert value(families, "kubetwin_mapper_sink_waiting", **labels) == 12
    assert value(families, "kubetwin_mapper_sink_lag_seconds", **labels) == 33.5
    assert value(families, "kubetwin_mapper_sink_dropped_total", reason="size", **labels) == 2
    assert value(families, "kubetwin_mapper_sink_files_set_aside_total", mapper="memory-mapper") == 3


async def test_process_and_server_figures() -> None:
    async with served(MemoryMapper()) as server:
        await raw(server.port, b"GET /nowhere HTTP/1.0\r\n\r\n")
        families = await scrape(server.port)
    resident = value(families, "process_resident_memory_bytes")
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert value(families, "process_start_time_seconds") == pytest.approx(psutil.Process().create_time(), abs=5)
    assert value(families, "process_cpu_seconds_total") > 0
    assert value(families, "process_open_fds") == pytest.approx(psutil.Process().num_fds(), abs=5)
    assert value(families, "kubetwin_mapper_http_responses_total", code="404") == 1
    assert value(families, "kubetwin_mapper_http_connections") == 1
    assert "kubetwin_mapper_loop_blocks" not in families


async def test_watchdog_is_shown() -> None:
    async with watch_loop([]) as watchdog, served(MemoryMapper(), watchdog=watchdog) as server:
        watchdog.blocks["memory"] += 2
        watchdog.blocked_s["memory"] = 1.25
        await until(lambda: bool(sum(watchdog.lag.counts)))
        families = await scrape(server.port)
    assert value(families, "kubetwin_mapper_loop_blocks_total", protocol="memory") == 2
    assert value(families, "kubetwin_mapper_loop_blocked_seconds_total", protocol="memory") == 1.25
    assert value(families, "kubetwin_mapper_loop_lag_seconds_count") >= 1


async def test_thousand_devices_are_written_in_slices_between_which_others_have_a_turn() -> None:
    devices = [MemoryDevice(msgspec.structs.replace(DEVICE, name=f"d{i}")) for i in range(1000)]
    async with served(MemoryMapper(*devices)) as server:
        families = await scrape(server.port)
        body = (await Metrics([MemoryMapper(*devices)], server, None).endpoint(Request("GET", "/metrics", "", {}))).body
    assert len(families["kubetwin_mapper_reads"].samples) == 1000
    assert not isinstance(body, bytes)
    turns: list[int] = []
    done = False

    async def other_work() -> None:
        while not done:  # counts how often it has a turn
            turns.append(1)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(other_work())
        largest = 0
        async for chunk in body:
            largest = max(largest, len(chunk))
        done = True
    assert len(turns) > 50
    assert largest < 100_000, "some 200 devices of one metric"


# the format

any_text = st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@given(any_text, st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 2**53))
def test_any_label_and_number_are_read_back(text: str, number: float) -> None:
    family = Family("kubetwin_test", "gauge", text)
    written = head(family) + sample_line(family.name, label_text({"a": text, "b": ""}), number)
    (metric,) = text_string_to_metric_families(written)
    (sample,) = metric.samples
    assert sample.labels == {"a": text, "b": ""}
    assert sample.value == number or (math.isnan(sample.value) and math.isnan(number))


@given(st.lists(st.integers(0, 10**6), min_size=len(BUCKETS_S) + 1, max_size=len(BUCKETS_S) + 1), st.floats(0, 1e9))
def test_histogram_adds_up(counts: list[int], total: float) -> None:
    family = Family("kubetwin_test_seconds", "histogram", "Test.")
    (metric,) = text_string_to_metric_families(
        head(family) + histogram_lines(family.name, {}, BUCKETS_S, counts, total)
    )
    buckets = [s.value for s in metric.samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == sum(counts) == next(s.value for s in metric.samples if s.name.endswith("_count"))


# the probes


async def probe(port: int, path: str) -> tuple[int, dict[str, object]]:
    head_, _, body = (await raw(port, f"GET {path} HTTP/1.0\r\n\r\n".encode())).partition(b"\r\n\r\n")
    return int(head_.split()[1]), json.loads(body)


async def test_registered_mapper_is_healthy_and_ready() -> None:
    async with served(MemoryMapper()) as server:
        for path in ("/healthz", "/readyz"):
            status, body = await probe(server.port, path)
            assert (status, body["status"]) == (200, "ok")
        assert body["mappers"] == [
            {
                "name": "memory-mapper",
                "protocol": "memory",
                "registered": True,
                "since": body["mappers"][0]["since"],  # type: ignore[index]  # a list, as the comparison shows
                "devices": 1,
            }
        ]


async def test_edge_core_that_restarts_makes_it_unready_but_not_unhealthy() -> None:
    mapper, other = MemoryMapper(), MemoryMapper(name="other")
    registration = mapper.registration
    registration.registered, registration.problem = False, "no such socket"
    async with served(other, mapper) as server:
        assert (await probe(server.port, "/healthz"))[0] == 200
        status, body = await probe(server.port, "/readyz")
        assert (status, body["status"]) == (503, "failing")
        registration.since = 1_767_323_045.0
        status, body = await probe(server.port, "/healthz")
        assert status == 503
        assert body["reason"] == (
            "memory-mapper is not registered with an edge core since 2026-01-02T03:04:05Z: no such socket"
        )
        registration.since = time.time() - GRACE_S + 30
        assert (await probe(server.port, "/healthz"))[0] == 200


async def test_process_without_a_mapper_is_not_ready() -> None:
    async with served() as server:
        assert (await probe(server.port, "/readyz"))[0] == 503
