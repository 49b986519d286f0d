"""The sinks there are, one module each. None imports its client library before it is used."""

from __future__ import annotations

from mappers.sdk.sinks.kinds.http import HttpTarget
from mappers.sdk.sinks.kinds.influxdb import InfluxTarget
from mappers.sdk.sinks.kinds.mqtt import MqttTarget
from mappers.sdk.sinks.kinds.mysql import MySqlTarget
from mappers.sdk.sinks.kinds.otel import OtelTarget
from mappers.sdk.sinks.kinds.redis import RedisTarget
from mappers.sdk.sinks.kinds.tdengine import TdEngineTarget

__all__ = ["AnyKind"]

AnyKind = HttpTarget | InfluxTarget | MqttTarget | MySqlTarget | OtelTarget | RedisTarget | TdEngineTarget
