"""Push methods as manifests have them: all are served, and what is wrong is named with its path."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dmi.push import push_from_pb, push_to_pb
from dmi.types import Device, DeviceId, DeviceProperty
from mappers.sdk.config import DataConfig, data_folder
from mappers.sdk.push import PushPlane
from mappers.sdk.sinks.declared import read_push_method
from mappers.sdk.sinks.secrets import Secrets
from mappers.sdk.web.views import HasSinkStats
from tests.mappers.sink_world import plane

ALL: dict[str, Any] = {
    "http": {"hostName": "http://192.0.2.80", "port": 8080, "requestPath": "/in", "timeout": 3000},
    "mqtt": {"address": "tcp://192.0.2.30:1883", "topic": "plant/flow", "qos": 1, "retained": True},
    "otel": {"endpointURL": "https://collector.example/v1/metrics"},
    "dbMethod": {
        "influxdb2": {
            "influxdb2ClientConfig": {"url": "http://192.0.2.40:8086", "org": "o", "bucket": "b"},
            "influxdb2DataConfig": {"measurement": "m", "tag": {"line": "north"}, "fieldKey": "f"},
        },
        "redis": {"redisClientConfig": {"addr": "192.0.2.41:6379", "db": 2, "poolsize": 5, "minIdleConns": 1}},
        "TDEngine": {"TDEngineClientConfig": {"addr": "192.0.2.42:6041", "dbName": "plant"}},
        "mysql": {"mysqlClientConfig": {"addr": "192.0.2.43:3306", "database": "plant", "userName": "mapper"}},
    },
}


def read(push: dict[str, Any]) -> tuple[list[str], list[str]]:
    outlets, problems = read_push_method(push, "p", DeviceId("plant/meter"), "flow")
    return [target.kind for target, _ in outlets], problems


def test_every_kind_of_a_property_is_served_not_only_the_first() -> None:
    kinds, problems = read(ALL)
    assert kinds == ["http", "mqtt", "otel", "influxdb2", "redis", "tdengine", "mysql"]
    assert problems == []


def test_it_is_the_same_after_dmi() -> None:
    assert read_push_method(push_from_pb(push_to_pb(ALL, "p")), "p", DeviceId("a/b"), "f")[1] == []
    assert {k for k, _ in map(lambda o: (o[0].kind, o[1]), read_push_method(push_from_pb(push_to_pb(ALL, "p")), "p", DeviceId("a/b"), "f")[0])} == set(read(ALL)[0])  # noqa: C417, E501  # fmt: skip


def test_a_target_knows_no_secret_and_equal_ones_are_one() -> None:
    (first, _), (second, _) = (read_push_method(ALL, "p", DeviceId("plant/meter"), n)[0][1] for n in ("a", "b"))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("push", "problem"),
    (
        ({"anomalyDetection": {"algorithm": "zscore"}}, "p.anomalyDetection: is not supported"),
        ({"htpp": {}}, "p.htpp: there is no such push method"),
        ({"dbMethod": {"oracle": {}}}, "p.dbMethod.oracle: there is no such database"),
        ({"http": []}, "p.http: must be an object"),
        ({"http": {"hostName": "collector", "port": 1}}, "p.http.hostName: 'collector' must start with http://"),
        ({"http": {"hostName": "http://a", "port": 70000}}, "p.http.port: "),
        ({"http": {"hostName": "http://a", "port": "80x"}}, "p.http.port: "),
        ({"http": {"hostName": "http://a/b"}}, "p.http.hostName: "),
        ({"http": {"hostName": "http://a", "requestPath": "in"}}, "p.http.requestPath: 'in' must start with /"),
        ({"http": {"hostName": "http://a", "body": "json"}}, "p.http.body: there is no such key"),
        ({"mqtt": {"address": "broker:1883", "topic": "t"}}, "p.mqtt.address: "),
        ({"mqtt": {"address": "tcp://b", "topic": "a/#"}}, "p.mqtt.topic: "),
        ({"mqtt": {"address": "tcp://b", "topic": "a", "qos": 3}}, "p.mqtt.qos: "),
        ({"otel": {}}, "p.otel.endpointURL: "),
        ({"dbMethod": {"influxdb2": {}}}, "p.dbMethod.influxdb2.influxdb2ClientConfig.url: "),
        ({"dbMethod": {"redis": {}}}, "p.dbMethod.redis.redisClientConfig.addr: must be host:port"),
        (
            {"dbMethod": {"mysql": {"mysqlClientConfig": {"addr": "db", "database": ""}}}},
            "p.dbMethod.mysql.mysqlClientConfig.database: ",
        ),
        (
            {"dbMethod": {"TDEngine": {"TDEngineClientConfig": {"addr": "x:y", "dbName": "d"}}}},
            "p.dbMethod.TDEngine.TDEngineClientConfig.addr: ",
        ),
    ),
)
def test_what_is_wrong_is_named_with_its_path(push: dict[str, Any], problem: str) -> None:
    (found,) = read(push)[1]
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "push",
    (
        {"http": {"hostName": "http://joe:s3cret@host"}},
        {"mqtt": {"address": "tcp://joe:s3cret@host", "topic": "t"}},
        {"dbMethod": {"redis": {"redisClientConfig": {"addr": "joe:s3cret@host:1"}}}},
    ),
)
def test_a_password_in_an_address_is_refused_and_not_repeated(push: dict[str, Any]) -> None:
    kinds, (problem,) = read(push)
    assert not kinds
    assert "s3cret" not in problem


def test_a_table_name_that_mysql_cannot_hold_is_refused_at_once() -> None:
    push = {"dbMethod": {"mysql": ALL["dbMethod"]["mysql"]}}
    _, (problem,) = read_push_method(push, "p", DeviceId("plant/meter"), "x" * 60)
    assert "64" in problem


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, (problem,) = read({"mqtt": ALL["mqtt"]})
    assert problem == "p.mqtt: needs the library aiomqtt; install kubetwin[mqtt]"


async def test_a_wrong_sink_harms_no_other_and_has_the_path_of_its_property(tmp_path: Path) -> None:
    push = {"http": {"hostName": "nowhere"}, "otel": {"endpointURL": "http://127.0.0.1:9"}}
    device = Device("a", "b", properties=(DeviceProperty("first"), DeviceProperty("second", push_method=push)))
    async with plane(tmp_path) as data:
        (problem,) = data.declare(device)
        assert problem.startswith("spec.properties[1].pushMethod.http.hostName: ")
        assert [s.sink for s in data.stats()] == ["otel"]


def test_secrets_are_found_by_file_then_environment_the_special_name_first(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path, {"TOKEN": "environment", "ONLY": "here"})
    assert secrets.find("INFLUXDB_TOKEN", "TOKEN") == "environment"
    (tmp_path / "TOKEN").write_text("file\n")
    assert secrets.find("INFLUXDB_TOKEN", "TOKEN") == "file"
    (tmp_path / "INFLUXDB_TOKEN").write_text("special")
    assert secrets.find("INFLUXDB_TOKEN", "TOKEN") == "special"
    assert secrets.find("ONLY") == "here"
    assert secrets.find("NONE") is None
    assert "special" not in repr(secrets)
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not text"):
        secrets.find("BINARY")


def labels(push: dict[str, Any]) -> list[str]:
    return [target.label for target, _ in read_push_method(push, "p", DeviceId("plant/meter"), "flow")[0]]


def test_targets_that_differ_have_labels_that_differ() -> None:
    """They are series of the same metrics."""

    def mysql(user: str) -> dict[str, Any]:
        return {"dbMethod": {"mysql": {"mysqlClientConfig": {"addr": "db", "database": "plant", "userName": user}}}}

    assert labels(mysql("a")) != labels(mysql("b"))


@pytest.mark.parametrize(
    "push",
    (
        {"http": {"hostName": "http://c", "requestPath": "/in?key=KEY-%s"}},
        {"otel": {"endpointURL": "https://c/v1/metrics?api-key=KEY-%s"}},
        {"mqtt": {"address": "wss://c/mqtt?signature=KEY-%s", "topic": "t"}},
    ),
)
def test_a_key_in_a_query_is_shown_to_nobody(push: dict[str, Any]) -> None:
    ((kind, config),) = push.items()
    shown = [labels({kind: {k: v.replace("%s", n) for k, v in config.items()}}) for n in "ab"]
    assert "KEY" not in str(shown)
    assert len(set(map(tuple, shown))) == 2, "and yet they are told apart"


def test_an_endless_age_is_refused_where_it_is_configured() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_age_s"):
        msgspec.convert({"max_age_s": math.inf}, DataConfig)


async def test_a_folder_that_cannot_be_looked_into_keeps_no_mapper_from_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = data_folder(DataConfig(dir=str(tmp_path)), "\N{GREEK CAPITAL LETTER OMEGA}" * 60, "/s")
    async with PushPlane(DataConfig(), "m", folder) as samples:
        assert "cannot be taken up" in caplog.text
        assert not samples.declare(
            Device("a", "b", properties=(DeviceProperty("p", push_method={"http": ALL["http"]}),))
        )


async def test_a_damaged_file_of_an_earlier_run_is_counted(tmp_path: Path) -> None:
    (tmp_path / "http-1.db").write_bytes(b"no database")
    async with PushPlane(DataConfig(), "m", tmp_path) as samples:
        assert samples.files_set_aside == 1
    assert isinstance(samples, HasSinkStats), "or /metrics would not show it"
    assert (tmp_path / "http-1.damaged-1").exists()


def test_every_mapper_has_a_folder_of_its_own() -> None:
    assert data_folder(DataConfig(), "m", "/run/m.sock") == Path("/run/m-data")
    assert data_folder(DataConfig(dir="/d"), "m", "/run/m.sock") == Path("/d/m")
    for odd in ("..", ".", "a/../../b"):
        assert data_folder(DataConfig(dir="/d"), odd, "/s").parent == Path("/d")
        assert os.path.normpath(data_folder(DataConfig(dir="/d"), odd, "/s")).startswith("/d/")
