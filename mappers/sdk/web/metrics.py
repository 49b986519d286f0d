"""`/metrics`: what the mappers count, for Prometheus.

Durations are histograms per mapper and counters are per device: a thousand devices are some fifteen thousand series,
histograms for each would be that many again. The text is made in slices, so that the devices are read meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol

from msgspec import Struct

from dmi.web.exposition import (
    CONTENT_TYPE,
    Family,
    Labels,
    head,
    histogram_lines,
    label_text,
    sample_line,
)
from dmi.web.http import Request, Response
from dmi.web.process import process_figures
from mappers.sdk.stats import BUCKETS_S, Histogram
from mappers.sdk.watchdog import Watchdog
from mappers.sdk.web.views import DeviceView, HasSinkStats, MapperView

if TYPE_CHECKING:
    from mappers.sdk.sinks.record import SinkStats

__all__ = ["Metrics", "ServerView"]

_SLICE: Final = 200
"""Devices whose lines are written before others on the loop have a turn."""
_PREFIX: Final = "kubetwin_mapper_"


class ServerView(Protocol):
    """What is counted of the server itself."""

    @property
    def responses(self) -> Mapping[int, int]: ...

    @property
    def open_connections(self) -> int: ...


class _PerDevice(Struct, frozen=True):
    """A metric with one sample, or one per value of a further label, for each device."""

    family: Family
    samples: Callable[[DeviceView, float], Iterable[tuple[Labels, float]]]
    """From a device and the time, epoch seconds: further labels and value."""


def _counter(name: str, help_: str, attribute: str) -> _PerDevice:
    def samples(device: DeviceView, _now: float) -> Iterable[tuple[Labels, float]]:
        return (({}, getattr(device.stats, attribute)),)

    return _PerDevice(Family(f"{_PREFIX}{name}_total", "counter", help_), samples)


def _values(device: DeviceView, _now: float) -> Iterable[tuple[Labels, float]]:
    return ({"quality": "good"}, device.stats.values_good), ({"quality": "bad"}, device.stats.values_bad)


def _state(device: DeviceView, _now: float) -> Iterable[tuple[Labels, float]]:
    return (({"state": device.state[0]}, 1),)


def _report_lag(device: DeviceView, now: float) -> Iterable[tuple[Labels, float]]:
    if reported_ms := device.stats.reported_ms:
        yield {}, max(now - reported_ms / 1000, 0.0)


_PER_DEVICE: Final = (
    _counter("reads", "Collect cycles carried out.", "reads"),
    _counter("read_failures", "Collect cycles that brought no good value.", "read_failures"),
    _PerDevice(Family(f"{_PREFIX}values_total", "counter", "Values read, good and bad."), _values),
    _counter("writes", "Attempts to write a value.", "writes"),
    _counter("write_failures", "Attempts to write a value that failed.", "write_failures"),
    _counter("overruns", "Collect cycles left out because the one before took too long.", "overruns"),
    _counter("reconnects", "Links opened after the first.", "reconnects"),
    _counter("driver_errors", "Exceptions no driver should raise, and calls that did not end.", "driver_errors"),
    _counter("restarts", "Times the runtime of a device failed and was started over.", "restarts"),
    _counter("leaked_tasks", "Tasks a driver left running behind a closed link.", "leaked_tasks"),
    _PerDevice(Family(f"{_PREFIX}device_state", "gauge", "1 for the state a device is in."), _state),
    _PerDevice(
        Family(
            f"{_PREFIX}report_lag_seconds", "gauge", "Age of the oldest value in the last report the edge core took."
        ),
        _report_lag,
    ),
)


class Metrics:
    """The endpoint."""

    def __init__(self, mappers: Sequence[MapperView], server: ServerView, watchdog: Watchdog | None) -> None:
        self._mappers = mappers
        self._server = server
        self._watchdog = watchdog

    async def endpoint(self, _request: Request) -> Response:
        return Response(200, self._text(), CONTENT_TYPE)

    async def _text(self) -> AsyncGenerator[bytes, None]:
        mappers = [(m, {"mapper": m.name, "protocol": m.protocol}) for m in self._mappers]
        yield "".join((*self._process(), *_per_mapper(mappers), *_per_sink(self._mappers))).encode()
        devices = [(d, {"device": d.device.id, **labels}) for m, labels in mappers for d in m.fleet.runners()]
        labelled: list[tuple[DeviceView, Labels, str]] = []
        for start in range(0, len(devices), _SLICE):
            labelled.extend((d, labels, label_text(labels)) for d, labels in devices[start : start + _SLICE])
            await asyncio.sleep(0)
        for metric in _PER_DEVICE:
            yield head(metric.family).encode()
            for start in range(0, len(labelled), _SLICE):
                yield "".join(_device_lines(metric, labelled[start : start + _SLICE], time.time())).encode()
                await asyncio.sleep(0)

    def _process(self) -> Iterator[str]:
        server, watchdog = self._server, self._watchdog
        answers = [({"code": str(status)}, count) for status, count in sorted(server.responses.items())]
        yield _lines("http_responses_total", "counter", "Answers of this server.", answers)
        yield _lines("http_connections", "gauge", "Clients of this server.", [({}, server.open_connections)])
        if watchdog is not None:
            blocks = [({"protocol": p or "none"}, float(n)) for p, n in list(watchdog.blocks.items())]
            blocked = [({"protocol": p or "none"}, s) for p, s in list(watchdog.blocked_s.items())]
            yield _lines("loop_blocks_total", "counter", "Times a driver blocked the event loop.", blocks)
            yield _lines("loop_blocked_seconds_total", "counter", "Time a driver blocked the event loop.", blocked)
            busy = [({"protocol": p or "none"}, float(n)) for p, n in list(watchdog.busy.items())]
            yield _lines("loop_busy_total", "counter", "Times the loop was late for many short steps.", busy)
            yield _histograms("loop_lag_seconds", "How late the event loop was.", [({}, [watchdog.lag])])
        for family, value in process_figures():
            yield head(family) + sample_line(family.name, "", value)


def _per_mapper(mappers: Sequence[tuple[MapperView, Labels]]) -> Iterator[str]:
    gauges: tuple[tuple[str, Literal["counter", "gauge"], str, Callable[[MapperView], float]], ...] = (
        ("registered", "gauge", "1 while registered with an edge core.", lambda m: int(m.registration.registered)),
        ("failures_total", "counter", "Times the mapper as a whole failed and was started over.", lambda m: m.failures),
        ("devices", "gauge", "Devices that run.", lambda m: len(m.fleet.runners())),
        ("queue_depth", "gauge", "Devices with reports not yet with the edge core.", lambda m: m.uplink.queue_depth),
        ("reports_total", "counter", "Reports the edge core took.", lambda m: m.uplink.reports),
        ("report_failures_total", "counter", "Reports refused or not delivered.", lambda m: m.uplink.report_failures),
        ("unfit_values_total", "counter", "Values that a stock edge core dropped.", lambda m: m.uplink.unfit),
    )
    for name, kind, help_, value in gauges:
        yield _lines(name, kind, help_, [(labels, value(m)) for m, labels in mappers])
    latencies = [
        (labels, [m.fleet.retired_latency, *(d.stats.read_latency for d in m.fleet.runners())]) for m, labels in mappers
    ]
    yield _histograms("read_seconds", "Duration of collect cycles.", latencies)


def _per_sink(mappers: Sequence[MapperView]) -> Iterator[str]:
    """Of each mapper; sinks that mappers share count for the first of them."""
    data_planes = {id(m.samples): (m.name, m.samples) for m in reversed(mappers)}
    counted = [(name, samples) for name, samples in data_planes.values() if isinstance(samples, HasSinkStats)]
    damaged = [({"mapper": name}, samples.files_set_aside) for name, samples in counted]
    yield _lines("sink_files_set_aside_total", "counter", "Files of waiting samples that were damaged.", damaged)
    sinks = [
        ({"mapper": name, "sink": s.sink, "target": s.target}, s) for name, samples in counted for s in samples.stats()
    ]
    if not sinks:
        return
    figures: tuple[tuple[str, Literal["counter", "gauge"], str, Callable[[SinkStats], float]], ...] = (
        ("sink_up", "gauge", "1 while the sink can be reached.", lambda s: int(s.up)),
        ("sink_sent_total", "counter", "Samples the sink confirmed.", lambda s: s.sent),
        ("sink_failures_total", "counter", "Attempts to connect or send that failed.", lambda s: s.failed),
        ("sink_waiting", "gauge", "Samples waiting for the sink, on disk and in memory.", lambda s: s.waiting),
        ("sink_lag_seconds", "gauge", "Age of the oldest sample that waits.", lambda s: s.lag_s),
    )
    for name, kind, help_, value in figures:
        yield _lines(name, kind, help_, [(labels, value(stats)) for labels, stats in sinks])
    dropped = [({**labels, "reason": reason}, n) for labels, s in sinks for reason, n in s.dropped.items()]
    yield _lines("sink_dropped_total", "counter", "Samples lost, by reason.", dropped)


def _device_lines(metric: _PerDevice, devices: Sequence[tuple[DeviceView, Labels, str]], now: float) -> Iterator[str]:
    name = metric.family.name
    for device, labels, text in devices:
        for further, value in metric.samples(device, now):
            yield sample_line(name, label_text({**labels, **further}) if further else text, value)


def _lines(name: str, kind: Literal["counter", "gauge"], help_: str, samples: Iterable[tuple[Labels, float]]) -> str:
    family = Family(_PREFIX + name, kind, help_)
    return head(family) + "".join(sample_line(family.name, label_text(labels), value) for labels, value in samples)


def _histograms(name: str, help_: str, series: Iterable[tuple[Labels, Sequence[Histogram]]]) -> str:
    """Each series the sum of its histograms."""
    family = Family(_PREFIX + name, "histogram", help_)
    parts = [head(family)]
    for labels, histograms in series:
        counts = [sum(column) for column in zip(*(h.counts for h in histograms), strict=True)]
        total_s = sum(h.total_s for h in histograms)
        parts.append(histogram_lines(family.name, labels, BUCKETS_S, counts, total_s))
    return "".join(parts)
