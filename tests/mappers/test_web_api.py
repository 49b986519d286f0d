"""The device API over real HTTP: every row of the contract, its POST and PUT forms, and what a failure looks like."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from http.client import HTTPConnection
from typing import Any

import msgspec
import pytest

from dmi.types import Device, DeviceId
from mappers.sdk.errors import (
    ConversionError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
)
from mappers.sdk.web import WebServer
from tests.mappers.web_world import COLLECTED_MS, DEVICE, MemoryDevice, MemoryMapper, in_thread, served

JSON = {"Content-Type": "application/json"}
DEVICE_ID = DeviceId("plant/pump-1")


class Reply:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        assert self.headers["Content-Type"] == "application/json"
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def text(self) -> str:
        assert self.headers["Content-Type"].startswith("text/plain")
        assert self.headers["X-Content-Type-Options"] == "nosniff"
        return self.body.decode()


class Api:
    """A client and the mapper behind the server."""

    def __init__(self, server: WebServer, mapper: MemoryMapper) -> None:
        self.server = server
        self.mapper = mapper

    async def __call__(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        def call() -> Reply:
            client = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
            try:
                client.request(method, path, body, dict(headers or {}))
                response = client.getresponse()
                return Reply(response.status, dict(response.getheaders()), response.read())
            finally:
                client.close()

        return await in_thread(call)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    mapper = MemoryMapper()
    async with served(mapper) as server:
        yield Api(server, mapper)


def without_time(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply without the fields every one begins with, which are checked."""
    assert list(reply)[:3] == ["apiVersion", "statusCode", "timeStamp"]
    assert reply.pop("apiVersion") == "v1"
    assert reply.pop("statusCode") == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reply.pop("timeStamp"))
    return reply


async def test_ping(api: Api) -> None:
    reply = await api("GET", "/api/v1/ping")
    assert reply.status == 200
    assert without_time(reply.json) == {"Message": "memory-mapper: running"}


async def test_read_goes_to_the_device_and_has_upstreams_keys(api: Api) -> None:
    reply = await api("GET", "/api/v1/device/plant/pump-1/speed")
    assert api.mapper.pump.calls == [("read", "speed")]
    assert without_time(reply.json) == {
        "Data": {
            "DeviceName": "pump-1",
            "PropertyName": "speed",
            "Namespace": "plant",
            "Value": "42",
            "Type": "int",
            "TimeStamp": COLLECTED_MS,
        }
    }


async def test_model_of_a_device_is_at_the_top_level_without_what_is_empty(api: Api) -> None:
    reply = await api("GET", "/api/v1/meta/model/plant/pump-1")
    assert without_time(reply.json) == {
        "id": "plant/pump",
        "name": "pump",
        "namespace": "plant",
        "properties": [
            {
                "name": "speed",
                "dataType": "INT",
                "description": "Shaft speed",
                "accessMode": "ReadWrite",
                "minimum": "0",
                "maximum": "3000",
                "unit": "rpm",
            },
            {"name": "flow", "dataType": "FLOAT", "accessMode": "ReadOnly"},
            {"name": "label", "dataType": "STRING", "accessMode": "ReadWrite"},
        ],
    }


async def test_model_that_is_not_known_is_not_found(api: Api) -> None:
    api.mapper.pump.model = None
    reply = await api("GET", "/api/v1/meta/model/plant/pump-1")
    assert reply.status == 404
    assert "plant/pump is not known" in reply.text


async def test_methods_are_listed_with_a_path_to_fill_in(api: Api) -> None:
    reply = await api("GET", "/api/v1/devicemethod/plant/pump-1")
    assert without_time(reply.json) == {
        "Data": {
            "Methods": [
                {
                    "Name": "SetSpeed",
                    "Path": "/api/v1/devicemethod/plant/pump-1/SetSpeed/{propertyName}/{data}",
                    "Parameters": [
                        {"PropertyName": "speed", "ValueType": "int"},
                        {"PropertyName": "label", "ValueType": "string"},
                    ],
                },
                {
                    "Name": "Stop",
                    "Path": "/api/v1/devicemethod/plant/pump-1/Stop/{propertyName}/{data}",
                    "Parameters": [],
                },
            ]
        }
    }


async def test_method_is_called_by_get_as_upstream_does(api: Api) -> None:
    reply = await api("GET", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed/1200")
    assert without_time(reply.json) == {"Message": "speed of device plant/pump-1 is now 1200"}
    assert api.mapper.pump.values["speed"] == "1200"


async def test_data_in_the_path_may_hold_any_character(api: Api) -> None:
    await api("GET", "/api/v1/devicemethod/plant/pump-1/SetSpeed/label/hall%2F3%20%C3%BC%25?debug=1")
    assert api.mapper.pump.values["label"] == "hall/3 ü%"


async def test_method_is_called_by_post(api: Api) -> None:
    reply = await api("POST", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed", '{"value": "900"}', JSON)
    assert without_time(reply.json) == {"Message": "speed of device plant/pump-1 is now 900"}
    assert ("call", "speed", "900") in api.mapper.pump.calls


@pytest.mark.parametrize(
    ("sent", "text"),
    (('"7"', "7"), ("7", "7"), ("true", "true"), ("2.5", "2.5"), ('"a/b \\u00fc"', "a/b ü"), ('""', "")),
)
async def test_put_takes_the_value_as_text_or_as_json_has_it(api: Api, sent: str, text: str) -> None:
    reply = await api("PUT", "/api/v1/device/plant/pump-1/label", f'{{"value": {sent}}}', JSON)
    assert reply.status == 200
    assert api.mapper.pump.calls == [("write", "label", text)]


@pytest.mark.parametrize(
    "body", ("", "7", "[]", "{}", '{"value": null}', '{"value": {}}', '{"value": 1, "valeu": 2}', '{"value": "\ud800"}')
)
async def test_put_of_anything_else_is_refused_before_the_device_hears_of_it(api: Api, body: str) -> None:
    reply = await api(
        "PUT", "/api/v1/device/plant/pump-1/label", body.encode("utf-8", "surrogatepass").decode("latin-1"), JSON
    )
    assert reply.status == 400
    assert '{"value": …}' in reply.text
    assert api.mapper.pump.calls == []


@pytest.mark.parametrize("content_type", (None, "text/plain", "application/x-www-form-urlencoded"))
async def test_write_that_is_not_declared_json_is_refused(api: Api, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = await api("PUT", "/api/v1/device/plant/pump-1/label", '{"value": "x"}', headers)
    assert reply.status == 415
    assert "application/json" in reply.text
    assert api.mapper.pump.calls == []


async def test_database_is_upstreams_stub(api: Api) -> None:
    assert (await api("GET", "/api/v1/database/plant/pump-1")).status == 503


@pytest.mark.parametrize(
    "path",
    (
        "/api/v1/device/plant/none/speed",
        "/api/v1/device/other/pump-1/speed",
        "/api/v1/device/plant/pump-1/none",
        "/api/v1/device/plant/none",
        "/api/v1/meta/model/plant/none",
        "/api/v1/devicemethod/plant/none",
        "/api/v1/devicemethod/plant/pump-1/None/speed/1",
        "/api/v1/devicemethod/plant/pump-1/SetSpeed/none/1",
        "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed/",
        "/api/v1/device/plant%2Fpump-1/speed",
        "/api/v1/device/plant/pump-1/speed/",
        "/api/v1/",
        "/",
        "//",
        "/api/v2/ping",
    ),
)
async def test_what_there_is_not_is_not_found(api: Api, path: str) -> None:
    reply = await api("GET", path)
    assert reply.status == 404
    assert reply.text.strip()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    (
        ("DELETE", "/api/v1/ping", "GET, HEAD"),
        ("POST", "/api/v1/device/plant/pump-1/speed", "GET, HEAD, PUT"),
        ("OPTIONS", "/api/v1/device/plant/pump-1/speed", "GET, HEAD, PUT"),
        ("GET", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed", "POST"),
        ("HEAD", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed/1", "GET"),
    ),
)
async def test_wrong_verb_is_told_the_right_one(api: Api, method: str, path: str, allowed: str) -> None:
    reply = await api(method, path)
    assert reply.status == 405
    assert reply.headers["Allow"] == allowed
    assert api.mapper.pump.calls == []


async def test_head_has_the_headers_of_get_and_no_body(api: Api) -> None:
    got, head = await api("GET", "/api/v1/ping"), await api("HEAD", "/api/v1/ping")
    assert head.status == 200
    assert head.body == b""
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


@pytest.mark.parametrize(
    ("failure", "status"),
    (
        (DeviceTimeout(DEVICE_ID, "no reply in 1 s"), 504),
        (DeviceUnreachable(DEVICE_ID, "connection refused"), 502),
        (DeviceRejected(DEVICE_ID, "illegal address", 2), 502),
        (DeviceProtocolError(DEVICE_ID, "short frame"), 502),
        (DeviceUnsupported(DEVICE_ID, "the link cannot write"), 501),
    ),
)
@pytest.mark.parametrize("verb", ("GET", "PUT"))
async def test_failure_of_the_device_says_whose_it_is(api: Api, failure: Exception, status: int, verb: str) -> None:
    api.mapper.pump.failure = failure
    reply = await api(verb, "/api/v1/device/plant/pump-1/speed", '{"value": "1"}' if verb == "PUT" else None, JSON)
    assert reply.status == status
    assert str(failure) in reply.text


async def test_bad_value_is_the_clients_when_written_and_the_devices_when_read(api: Api) -> None:
    api.mapper.pump.failure = ConversionError("nan is not a number")
    assert (await api("PUT", "/api/v1/device/plant/pump-1/speed", '{"value": "x"}', JSON)).status == 400
    assert (await api("GET", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed/x")).status == 400
    assert (await api("POST", "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed", '{"value": "x"}', JSON)).status == 400
    assert (await api("GET", "/api/v1/device/plant/pump-1/speed")).status == 502


async def test_bug_is_logged_and_tells_the_client_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.mapper.pump.failure = RuntimeError("password=hunter2")
    reply = await api("GET", "/api/v1/device/plant/pump-1/speed")
    assert reply.status == 500
    assert "hunter2" not in reply.text
    assert any(record.exc_info for record in caplog.records)
    assert (await api("GET", "/api/v1/ping")).status == 200


@pytest.mark.parametrize("path", ("/api/v1/ping", "/api/v1/device/plant/none/speed", "/nowhere"))
async def test_correlation_id_comes_back(api: Api, path: str) -> None:
    reply = await api("GET", path, headers={"X-Correlation-ID": "order \xe4 7"})
    assert reply.headers["X-Correlation-ID"] == "order \xe4 7"
    assert "X-Correlation-ID" not in (await api("GET", path)).headers


async def test_devices_are_listed_with_their_twins(api: Api) -> None:
    api.mapper.pump.state = ("offline", "no reply")
    reply = without_time((await api("GET", "/api/v1/device")).json)
    (device,) = reply["Devices"]
    assert (device["Namespace"], device["Name"], device["Model"]) == ("plant", "pump-1", "pump")
    assert (device["State"], device["Reason"], device["Protocol"]) == ("offline", "no reply", "memory")
    assert device["Properties"][0] == {
        "Name": "speed",
        "Value": "42",
        "Type": "int",
        "TimeStamp": COLLECTED_MS,
        "Quality": "good",
    }
    assert without_time((await api("GET", "/api/v1/device/plant/pump-1")).json) == {"Data": device}


async def test_list_of_many_devices_of_several_mappers_is_whole() -> None:
    def devices(namespace: str, count: int) -> list[MemoryDevice]:
        return [MemoryDevice(_named(namespace, f"d{i}")) for i in range(count)]

    mappers = (MemoryMapper(*devices("a", 60)), MemoryMapper(*devices("b", 3), name="second"))
    async with served(*mappers) as server:
        api = Api(server, mappers[0])
        listed = (await api("GET", "/api/v1/device")).json["Devices"]
        assert [f"{d['Namespace']}/{d['Name']}" for d in listed] == [
            *(f"a/d{i}" for i in range(60)),
            *(f"b/d{i}" for i in range(3)),
        ]
        assert (await api("GET", "/api/v1/device/b/d2/speed")).status == 200


def _named(namespace: str, name: str) -> Device:
    return msgspec.structs.replace(DEVICE, namespace=namespace, name=name)
