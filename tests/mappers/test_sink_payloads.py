"""What each kind of sink sends: to the byte where the contract gives bytes, else as the format's reader sees it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from dmi.types import DeviceId
from mappers.sdk.samples import Sample
from mappers.sdk.sinks import sink as sink_module
from mappers.sdk.sinks.clients import local_time
from mappers.sdk.sinks.kinds.http import HttpRoute, body
from mappers.sdk.sinks.kinds.influxdb import InfluxConfig, line, read_influxdb
from mappers.sdk.sinks.kinds.mqtt import MqttRoute, payload
from mappers.sdk.sinks.kinds.otel import export_request, number
from mappers.sdk.sinks.kinds.redis import RedisRoute, member
from mappers.sdk.sinks.kinds.tdengine import create_statement, insert_statement
from mappers.sdk.sinks.record import Record
from tests.mappers.sink_world import T0_MS, Collector, collector, device, plane, sample, until

TEXT = st.text(st.characters(codec="utf-8"))


@pytest.fixture
async def server() -> AsyncIterator[Collector]:
    async with collector() as running:
        yield running


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.02, 0.1))


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_as_upstream_writes_them(new_york: None) -> None:
    assert local_time(1_767_323_045_999) == "2026-01-01 22:04:05"
    for far in (-1, 10**18, -(10**18)):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", local_time(far))


def test_http_body_is_upstreams_for_ordinary_values(new_york: None) -> None:
    record = Record(Sample(DeviceId("a/b"), "temperature", "21.5", "float", 1_767_323_045_000), HttpRoute(1))
    assert body(record) == b"temperature=21.5&time=2026-01-01 22:04:05"


@given(TEXT, TEXT.filter(bool))
def test_http_body_gives_a_form_decoder_the_very_value(value: str, name: str) -> None:
    encoded = body(Record(Sample(DeviceId("a/b"), name, value, "string", T0_MS), HttpRoute(1)))
    pairs = parse_qsl(encoded.decode("ascii"), keep_blank_values=True, strict_parsing=True)
    assert pairs == [(name, value), ("time", local_time(T0_MS))]
    assert b";" not in encoded, "which Go's form decoder refuses"


def test_mqtt_payload_is_upstreams(new_york: None) -> None:
    record = Record(Sample(DeviceId("a/b"), "t", "21.5", "float", 1_767_323_045_000), MqttRoute("plant/t", 0, False))
    assert payload(record) == "time is 2026-01-01 22:04:05  plant/t: 21.5"


@given(TEXT)
def test_redis_member_is_the_record_as_json(value: str) -> None:
    text = member(Record(Sample(DeviceId("ns/dev"), "p", value, "string", 5), RedisRoute()))
    assert json.loads(text) == {
        "DeviceName": "dev", "PropertyName": "p", "Namespace": "ns", "Value": value, "Type": "string", "TimeStamp": 5,
    }  # fmt: skip
    assert not set(b"<>&") & set(text)


# Line protocol, read as its specification says.
_POINT = re.compile(
    r'(?P<head>(?:\\.|[^ \\]|\\)+) (?P<key>(?:\\.|[^=])+)="(?P<value>(?:\\["\\]|[^"\\])*)" (?P<ms>-?\d+)', re.S
)


def _influx(tag: dict[str, str], measurement: str = "boiler", field: str = "water_temp") -> dict[str, object]:
    return {
        "influxdb2ClientConfig": {"url": "http://127.0.0.1:8086", "org": "plant", "bucket": "boilers"},
        "influxdb2DataConfig": {"measurement": measurement, "tag": tag, "fieldKey": field},
    }


@given(TEXT)
def test_influx_line_keeps_any_value_as_a_string_field(value: str) -> None:
    import msgspec

    _, route = read_influxdb(msgspec.convert(_influx({"line": "north, 2=b"}), InfluxConfig), "p")
    text = line(Record(Sample(DeviceId("a/b"), "p", value, "double", T0_MS), route))
    match = _POINT.fullmatch(text)
    assert match is not None
    assert match["head"] == r"boiler,line=north\,\ 2\=b"
    assert match["key"] == "water_temp"
    assert re.sub(r'\\(["\\])', r"\1", match["value"]) == value
    assert int(match["ms"]) == T0_MS


async def test_influx_gets_all_that_waits_in_one_post(server: Collector, tmp_path: Path) -> None:
    config = _influx({"line": "north"})
    config["influxdb2ClientConfig"] = {"url": f"{server.url}/", "org": "plant & co", "bucket": "boilers"}
    await server.stop()
    async with plane(tmp_path / "data", {"TOKEN": "general", "INFLUXDB_TOKEN": "special"}) as data:
        assert data.declare(device({"dbMethod": {"influxdb2": config}})) == []
        for n in range(300):
            data.put(sample(n))
        await until(lambda: data.stats()[0].file, "samples wait on disk")
        await server.start()
        await until(lambda: data.stats()[0].sent == 300, "all are sent")
    path, headers, _ = server.requests[0]
    assert urlsplit(path).path == "/api/v2/write"
    assert parse_qs(urlsplit(path).query) == {"org": ["plant & co"], "bucket": ["boilers"], "precision": ["ms"]}
    assert headers["Authorization"] == "Token special"
    lines = [text for got in server.bodies for text in got.decode().split("\n")]
    assert lines == [f'boiler,line=north water_temp="{n}" {T0_MS + n * 1000}' for n in range(300)]
    assert len(server.requests) < 10


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    (("float", "21.5", 21.5), ("int", "-3", -3), ("boolean", "true", 1), ("boolean", "FALSE", 0), ("string", "7", 7),
     ("string", "open", None), ("float", "NaN", None), ("boolean", "2", None)),
)  # fmt: skip
def test_otel_takes_numbers_and_booleans(type_: str, value: str, expected: float | None) -> None:
    assert number(Sample(DeviceId("a/b"), "p", value, type_, 0)) == expected


def test_otel_request_has_a_resource_per_device_and_a_gauge_per_property() -> None:
    one, two = DeviceId("plant/a"), DeviceId("plant/b")
    samples = [(Sample(d, p, "1", "int", T0_MS + n), float(n)) for n, (d, p) in enumerate([(one, "x"), (two, "x"), (one, "y"), (one, "x")])]  # noqa: E501  # fmt: skip
    request = ExportMetricsServiceRequest.FromString(export_request(samples, "mapper-a"))
    seen = {}
    for resource in request.resource_metrics:
        attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
        assert attributes["service.name"] == "mapper-a"
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "github.com/kubeedge/mapper-a/data/dbmethod/otel"
        for metric in scope.metrics:
            seen[attributes["device.id"], metric.name] = [
                (point.time_unix_nano, point.as_double) for point in metric.gauge.data_points
            ]
    ns = T0_MS * 1_000_000
    assert seen == {
        ("plant/a", "x"): [(ns, 0.0), (ns + 3_000_000, 3.0)],
        ("plant/b", "x"): [(ns + 1_000_000, 1.0)],
        ("plant/a", "y"): [(ns + 2_000_000, 2.0)],
    }


async def test_otel_really_sends_and_does_not_repeat_what_is_refused(server: Collector, tmp_path: Path) -> None:
    refusal = ExportMetricsServiceResponse()
    refusal.partial_success.rejected_data_points = 1
    refusal.partial_success.error_message = "too old"
    server.answer = (200, refusal.SerializeToString())
    async with plane(tmp_path, {"OTEL_TOKEN": "abc"}) as data:
        assert data.declare(device({"otel": {"endpointURL": server.url}})) == []
        data.put(sample(1))
        await until(lambda: data.stats()[0].dropped, "the refusal is counted")
        server.answer = (200, b"")
        data.put(sample(2, value="no number", type_="string"))
        data.put(sample(3))
        await until(lambda: data.stats()[0].sent == 1, "one is taken")
        assert data.stats()[0].dropped == {"rejected": 2}
        assert data.stats()[0].failed == 0
    path, headers, _ = server.requests[0]
    assert (path, headers["Content-Type"]) == ("/v1/metrics", "application/x-protobuf")
    assert headers["Authorization"] == "Bearer abc"


def test_tdengine_statements(new_york: None) -> None:
    device_id = DeviceId("my-ns/flow-meter")
    assert create_statement(device_id) == (
        "CREATE STABLE IF NOT EXISTS `my_ns/flow_meter` (ts TIMESTAMP, deviceid BINARY(320), propertyname BINARY(128), "
        "data BINARY(1024), type BINARY(64)) TAGS (location BINARY(128))"
    )
    text = insert_statement(
        [
            Sample(device_id, "flow-rate", "it's \\ 5", "string", 1_767_323_045_123),
            Sample(device_id, "valve", "1", "int", 1_767_323_045_124),
            Sample(device_id, "flow-rate", "6", "string", 1_767_323_046_000),
        ]
    )
    assert text == (
        "INSERT INTO `my_ns/flow_meter/flow_rate` USING `my_ns/flow_meter` TAGS ('flow_rate') VALUES "
        "('2026-01-02T03:04:05.123Z', 'my-ns/flow-meter', 'flow-rate', 'it\\'s \\\\ 5', 'string') "
        "('2026-01-02T03:04:06.000Z', 'my-ns/flow-meter', 'flow-rate', '6', 'string') "
        "`my_ns/flow_meter/valve` USING `my_ns/flow_meter` TAGS ('valve') VALUES "
        "('2026-01-02T03:04:05.124Z', 'my-ns/flow-meter', 'valve', '1', 'int')"
    )


@given(TEXT)
def test_tdengine_text_cannot_leave_its_quotes(value: str) -> None:
    statement = insert_statement([Sample(DeviceId("a/b"), "p", value, "string", 0)])
    literals = re.findall(r"'((?:\\.|[^'\\])*)'", statement, re.S)
    assert len(literals) == 6, "tag, time, device, property, value, type"
    assert re.sub(r"\\(.)", r"\1", literals[4], flags=re.S) == value
    assert "'" not in re.sub(r"'((?:\\.|[^'\\])*)'", "", statement, flags=re.S)


async def test_tdengine_makes_the_super_table_when_it_is_missing(server: Collector, tmp_path: Path) -> None:
    tables: set[bytes] = set()

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        if body.startswith(b"CREATE"):
            tables.add(body.split(b"`")[1])
        elif body.split(b"`")[3] not in tables:
            return 200, b'{"code": 9731, "desc": "Table does not exist"}'  # 0x2603
        if b"'13'" in body:
            return 200, b'{"code": 9728, "desc": "syntax error"}'  # 0x2600
        return 200, b'{"code": 0, "rows": 1}'

    server.decide = answer
    config = {"TDEngineClientConfig": {"addr": f"127.0.0.1:{server.port}", "dbName": "plant"}}
    async with plane(tmp_path, {"USERNAME": "root", "PASSWORD": "taosdata"}) as data:
        assert data.declare(device({"dbMethod": {"TDEngine": config}})) == []
        for n in range(20):
            data.put(sample(n))
        await until(lambda: data.stats()[0].sent == 19, "all but one are taken")
        assert data.stats()[0].dropped == {"rejected": 1}
    path, headers, _ = server.requests[0]
    assert path == "/rest/sql/plant"
    assert headers["Authorization"] == "Basic cm9vdDp0YW9zZGF0YQ=="
    assert tables == {b"plant/meter_1"}
    assert sum(body.startswith(b"CREATE") for body in server.bodies) == 1
