"""`pushMethod.otel`: OTLP/HTTP metrics, a gauge named after the property (DMI contract 5).

Spec: OpenTelemetry Protocol, OTLP/HTTP: binary protobuf by POST; what a partial success refuses is not sent again.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from msgspec import Struct, field

from mappers.sdk.samples import Sample
from mappers.sdk.sinks.clients import http_session, load, masked, post, require, split_url
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, SinkRejected, SinkUnavailable, Target

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["OtelConfig", "OtelRoute", "OtelTarget", "export_request", "number", "read_otel"]

_MESSAGES: Final = "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2"


class OtelConfig(Struct, frozen=True):
    """As the manifest has it."""

    endpoint_url: str = field(name="endpointURL", default="")
    """`http://` or `https://`; without a path, `/v1/metrics`."""


class OtelRoute(Route, frozen=True):
    """A gauge needs nothing but the sample."""


class OtelTarget(Target[OtelRoute], frozen=True, tag="otel"):
    kind: ClassVar[str] = "otel"
    route_type: ClassVar[type[Route]] = OtelRoute

    url: str

    @property
    def label(self) -> str:
        return masked(self.url)

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[OtelRoute]]:
        return _connect(self, identity)


def read_otel(config: OtelConfig, path: str) -> tuple[OtelTarget, OtelRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiohttp", "http", path)
    require("opentelemetry", "otel", path)
    parts = split_url(config.endpoint_url, ("http", "https"), f"{path}.endpointURL")
    if parts.path in ("", "/"):
        parts = parts._replace(path="/v1/metrics")
    return OtelTarget(parts.geturl()), OtelRoute()


def number(sample: Sample) -> float | None:
    """A gauge's value; true and false are 1 and 0. None: it is no finite number, and OTLP has no place for it."""
    if sample.type == "boolean":
        return {"true": 1.0, "false": 0.0}.get(sample.value.lower())
    try:
        value = float(sample.value)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def export_request(samples: Iterable[tuple[Sample, float]], mapper: str) -> bytes:
    """An `ExportMetricsServiceRequest`: a resource per device, a gauge per property, a data point per sample."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ScopeMetrics

    request = ExportMetricsServiceRequest()
    gauges: dict[tuple[str, str], Metric] = {}
    scopes: dict[str, ScopeMetrics] = {}
    for sample, value in samples:
        scope = scopes.get(sample.device)
        if scope is None:
            resource = request.resource_metrics.add()
            for key, text in (("device.id", sample.device), ("service.name", mapper)):
                resource.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
            scope = scopes[sample.device] = resource.scope_metrics.add(
                scope=InstrumentationScope(name=f"github.com/kubeedge/{mapper}/data/dbmethod/otel")
            )
        metric = gauges.get((sample.device, sample.property_name))
        if metric is None:
            metric = gauges[sample.device, sample.property_name] = scope.metrics.add(name=sample.property_name)
        metric.gauge.data_points.add(time_unix_nano=max(sample.collected_ms, 0) * 1_000_000, as_double=value)
    return request.SerializeToString()


class _OtelSender:
    def __init__(self, target: OtelTarget, session: ClientSession, mapper: str) -> None:
        self._target = target
        self._session = session
        self._mapper = mapper

    async def send(self, records: Sequence[Record[OtelRoute]]) -> None:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

        values = [(r.sample, value) for r in records if (value := number(r.sample)) is not None]
        unfit = len(records) - len(values)
        problem = f"{unfit} values are no numbers"
        if values:
            body = export_request(values, self._mapper)
            answer = await post(self._session, self._target.url, body, content_type="application/x-protobuf")
            try:
                partial = ExportMetricsServiceResponse.FromString(answer).partial_success
            except DecodeError as error:
                raise SinkUnavailable("the answer is not OTLP: is this the right URL?") from error
            if partial.rejected_data_points > 0:
                unfit += min(partial.rejected_data_points, len(values))
                problem = f"{partial.rejected_data_points} data points refused: {partial.error_message[:200]}"
        if unfit:
            raise SinkRejected(problem, unfit)


@asynccontextmanager
async def _connect(target: OtelTarget, identity: Identity) -> AsyncIterator[_OtelSender]:
    await load(_MESSAGES)
    token = identity.secrets.find("OTEL_TOKEN")
    async with http_session({"Authorization": f"Bearer {token}"} if token else None) as session:
        yield _OtelSender(target, session, identity.mapper)
