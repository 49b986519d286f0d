"""The data plane of one mapper: every good value, to every sink that its property declares."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from dmi.types import Device, DeviceId
from mappers.sdk.config import DataConfig
from mappers.sdk.samples import Sample
from mappers.sdk.sinks.backlog import Backlog
from mappers.sdk.sinks.declared import read_push_method
from mappers.sdk.sinks.gate import Gate
from mappers.sdk.sinks.record import AnyTarget, Identity, Record, Route, SinkStats
from mappers.sdk.sinks.secrets import Secrets
from mappers.sdk.sinks.sink import Sink
from mappers.sdk.sinks.store import Limits, Store
from mappers.sdk.sinks.storefile import StoreError, read_target

__all__ = ["REPLAY_PER_S", "DataPlane"]

logger = logging.getLogger(__name__)

REPLAY_PER_S: Final = 5000.0
"""Samples a second of a backlog, each sink: an hour at 100 a second follows in 72 s, and a server on which many
gateways fall after an outage of its own gets up again."""
DRAIN_S: Final = 0.5
RETIRE_CHECK_S: Final = 1.0

_Key = tuple[DeviceId, str]


class DataPlane:
    """`Samples` with sinks behind it; an async context. Leaving it sends or stores what it took.

    `folder` is where samples wait (`mappers.sdk.config.data_folder`); it is made when the first one does.

    Delivery is at least once: after a crash or a lost acknowledgement some samples are sent again.
    """

    def __init__(
        self,
        config: DataConfig,
        mapper: str,
        folder: Path,
        *,
        environ: Mapping[str, str] = os.environ,
        replay_per_s: float = REPLAY_PER_S,
    ) -> None:
        self._identity = Identity(mapper, Secrets(Path(config.secrets_dir) if config.secrets_dir else None, environ))
        self._folder = folder
        self._config = config
        self._replay_per_s = replay_per_s
        self._sinks: dict[AnyTarget, Sink] = {}
        self._routes: dict[_Key, list[tuple[Sink, Route]]] = {}
        self._gates: dict[_Key, Gate] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._set_aside: list[Path] = []
        # One thread for all files; it starts with the first job.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sinks-store")

    async def __aenter__(self) -> DataPlane:
        """Takes up what an earlier run left on disk, declared again or not."""
        try:
            for path in sorted(self._folder.glob("*.db")) if self._folder.is_dir() else ():
                await self._take_up(path)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._retire_unused()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gate in self._gates.values():
            gate.flush()
        self._gates.clear()
        self._routes.clear()
        self._closing.set()
        if self._retiring:
            await asyncio.wait(self._retiring)
        async with asyncio.TaskGroup() as tasks:
            for sink in self._sinks.values():
                tasks.create_task(sink.close(drain_s=DRAIN_S), name=f"close sink {sink.target.kind}")
        self._sinks.clear()
        self._executor.shutdown(wait=True)

    def declare(self, device: Device) -> Sequence[str]:
        problems: list[str] = []
        routes: dict[_Key, list[tuple[Sink, Route]]] = {}
        cycles: dict[_Key, float] = {}
        for index, declared in enumerate(device.properties):
            key = (device.id, declared.name)
            if not declared.push_method or key in routes:
                continue
            path = f"spec.properties[{index}].pushMethod"
            outlets, wrong = read_push_method(declared.push_method, path, device.id, declared.name)
            problems += wrong
            routes[key] = [(self._sink(target), route) for target, route in outlets]
            cycles[key] = max(declared.report_cycle_ms, 0) / 1000
        for sinks in routes.values():
            for sink, _ in sinks:
                sink.outlets += 1
        self._drop(device.id, keep=cycles)
        self._routes |= routes
        for key, cycle_s in cycles.items():
            if key not in self._gates:
                self._gates[key] = Gate(cycle_s, self._emit)
        self._retire_unused()
        return problems

    def forget(self, device: DeviceId) -> None:
        self._drop(device, keep={})
        self._retire_unused()

    def put(self, sample: Sample) -> None:
        gate = self._gates.get((sample.device, sample.property_name))
        if gate is not None:
            gate.put(sample)

    def stats(self) -> Sequence[SinkStats]:
        return [sink.stats() for sink in self._sinks.values()]

    @property
    def files_set_aside(self) -> int:
        """Files that could not be used; they are kept under another name."""
        return len(self._set_aside)

    def _emit(self, sample: Sample) -> None:
        for sink, route in self._routes.get((sample.device, sample.property_name), ()):
            sink.put(Record(sample, route))

    def _drop(self, device: DeviceId, keep: Mapping[_Key, float]) -> None:
        """Forget the device's routes, and its gates except those with the cycle they had."""
        for key in [key for key in self._gates if key[0] == device]:
            if keep.get(key) != self._gates[key].cycle_s:
                self._gates.pop(key).flush()
        for key in [key for key in self._routes if key[0] == device]:
            for sink, _ in self._routes.pop(key):
                sink.outlets -= 1

    def _sink(self, target: AnyTarget) -> Sink:
        sink = self._sinks.get(target)
        if sink is None:
            limits = Limits(self._config.max_mb * 1_000_000, self._config.max_age_s)
            body = msgspec.json.encode(target)
            name = f"{target.kind}-{hashlib.sha256(body).hexdigest()[:16]}.db"
            backlog = Backlog(Store(self._folder / name, target, limits, self._set_aside), self._executor)
            sink = Sink(target, self._identity, backlog, replay_per_s=self._replay_per_s)
            self._sinks[target] = sink
            sink.start()
        return sink

    async def _take_up(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        try:
            target = await loop.run_in_executor(self._executor, read_target, path)
        except StoreError as error:
            logger.error("%s", error)
            self._set_aside += [error.set_aside] if error.set_aside else []
            return
        sink = self._sink(target)
        await sink.load()

    def _retire_unused(self) -> None:
        for sink in self._sinks.values():
            if not sink.outlets and not sink.retiring:
                sink.retiring = True
                task = asyncio.create_task(self._retire(sink), name=f"retire sink {sink.target.kind}")
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    async def _retire(self, sink: Sink) -> None:
        """Close a sink that no property uses any more once it has sent everything."""
        while not sink.outlets and not self._closing.is_set():
            if not sink.waiting:
                del self._sinks[sink.target]
                await sink.close()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETIRE_CHECK_S):
                    await self._closing.wait()
        sink.retiring = False
