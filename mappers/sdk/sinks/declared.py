"""`properties[].pushMethod` → targets and routes. Upstream serves the first push method and the first database of a
property; here all that are declared are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct

from dmi.errors import ConfigError
from dmi.settings import read_settings, unknown_keys
from dmi.types import DeviceId
from mappers.sdk.sinks.kinds.http import HttpConfig, read_http
from mappers.sdk.sinks.kinds.influxdb import InfluxConfig, read_influxdb
from mappers.sdk.sinks.kinds.mqtt import MqttConfig, read_mqtt
from mappers.sdk.sinks.kinds.mysql import MySqlConfig, read_mysql
from mappers.sdk.sinks.kinds.otel import OtelConfig, read_otel
from mappers.sdk.sinks.kinds.redis import RedisConfig, read_redis
from mappers.sdk.sinks.kinds.tdengine import TdEngineConfig, read_tdengine
from mappers.sdk.sinks.record import AnyTarget, Route

__all__ = ["Outlet", "read_push_method"]

Outlet = tuple[AnyTarget, Route]
_C = TypeVar("_C", bound=Struct)

_PUSH: Final = ("http", "mqtt", "otel")
_DATABASES: Final = ("influxdb2", "redis", "TDEngine", "mysql")
_DATABASE_KEY: Final = "dbMethod"


def read_push_method(
    push: Mapping[str, Any], path: str, device: DeviceId, property_name: str
) -> tuple[list[Outlet], list[str]]:
    """Where the samples of one property go, and what is wrong with that, with the path as in the YAML. One wrong sink
    does not harm the others."""
    outlets: list[Outlet] = []
    problems: list[str] = []
    for here, kind, config in _declared(push, path, problems):
        try:
            outlets.append(_read(kind, config, here, device, property_name, problems))
        except ConfigError as error:
            problems.append(str(error))
    return outlets, problems


def _declared(push: Mapping[str, Any], path: str, problems: list[str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path, kind and settings of each sink."""
    for key, config in push.items():
        here = f"{path}.{key}"
        if config is None:
            continue
        if key == "anomalyDetection":
            problems.append(f"{here}: is not supported; nothing is done with it")
        elif not isinstance(config, Mapping):
            problems.append(f"{here}: must be an object")
        elif key == _DATABASE_KEY:
            yield from _databases(config, here, problems)
        elif key in _PUSH:
            yield here, key, config
        else:
            problems.append(f"{here}: there is no such push method; there are {', '.join(_PUSH)} and {_DATABASE_KEY}")


def _databases(databases: Mapping[str, Any], path: str, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    for key, config in databases.items():
        here = f"{path}.{key}"
        if config is None:
            continue
        if key not in _DATABASES:
            problems.append(f"{here}: there is no such database; there are {', '.join(_DATABASES)}")
        elif not isinstance(config, Mapping):
            problems.append(f"{here}: must be an object")
        else:
            yield here, key, config


def _read(
    kind: str, config: Mapping[str, Any], path: str, device: DeviceId, property_name: str, problems: list[str]
) -> Outlet:
    def parse(type_: type[_C]) -> _C:
        problems.extend(f"{path}.{key}: there is no such key; it is not used" for key in unknown_keys(config, type_))
        return _settings(config, type_, path)

    readers: dict[str, Callable[[], Outlet]] = {
        "http": lambda: read_http(parse(HttpConfig), path),
        "mqtt": lambda: read_mqtt(parse(MqttConfig), path),
        "otel": lambda: read_otel(parse(OtelConfig), path),
        "influxdb2": lambda: read_influxdb(parse(InfluxConfig), path),
        "redis": lambda: read_redis(parse(RedisConfig), path),
        "TDEngine": lambda: read_tdengine(parse(TdEngineConfig), path, device, property_name),
        "mysql": lambda: read_mysql(parse(MySqlConfig), path, device, property_name),
    }
    return readers[kind]()


def _settings(config: Mapping[str, Any], type_: type[_C], path: str) -> _C:
    """As `read_settings`, the path joined as in the YAML."""
    try:
        return read_settings(config, type_)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.path}" if error.path else path, error.problem) from error
