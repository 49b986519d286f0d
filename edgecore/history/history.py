"""Listens to what is reported, and writes it to the ring, at most once a second and in a thread of its own.

Nothing here holds up a report: what waits is bounded, and while the file cannot be written the oldest goes, counted and
said once. A damaged file is set aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from cloudedge.message import now_ms
from dmi import DeviceId, device_id
from dmi.metrics import Metrics
from edgecore.bus import Bus, ObjectsChanged, TwinsReported
from edgecore.config import HistoryConfig
from edgecore.history.file import HistoryFile, is_damage
from edgecore.history.points import Buffer, Last, Point, digest, is_news
from edgecore.store import Database, StoreError, list_objects

__all__ = ["History", "open_history"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

WRITE_EVERY_S: Final = 1.0
RETRY_S: Final = 10.0
"""While the file cannot be written."""
BUFFER_POINTS: Final = 20_000
BUFFER_BYTES: Final = 4 * 1024 * 1024
PRUNE_EVERY_S: Final = 60.0
"""While nothing else is to be written."""
END_S: Final = 2.0
"""For what waits when edge core ends."""
_SIZE_SHARE: Final = 16
"""What part of the file's bytes one transaction may carry, so that the log stays in its share."""
_MAX_INTEGER: Final = 2**63 - 1
"""Of SQLite."""
_REOPEN_AFTER: Final = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")


class _Property(Struct, frozen=True):
    name: str


class _Spec(Struct, frozen=True):
    properties: tuple[_Property, ...] = ()


class _Device(Struct, frozen=True):
    spec: _Spec = _Spec()


class History:
    """Made by `open_history`."""

    def __init__(self, config: HistoryConfig, path: Path, bus: Bus, metrics: Metrics) -> None:
        self.path = path
        self._config = config
        self._bus = bus
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._file: HistoryFile | None = None
        self._last: dict[DeviceId, dict[str, Last]] = {}
        self._buffer = Buffer(max_points=BUFFER_POINTS, max_bytes=BUFFER_BYTES)
        self._prune_at = 0.0
        self._declared: dict[DeviceId, frozenset[str] | None] | None = None
        """What was declared at the start, until the file was opened and the rest dropped from it."""
        self._forgotten: dict[DeviceId, frozenset[str]] = {}
        """Devices with the properties that remain, none for a device that is gone; to be said to the file."""
        self.trouble = ""
        """Why nothing is written; empty: it is."""
        self._stored = metrics.counter("kubetwin_edgecore_history_points_total", "Values kept in the history.")
        self._dropped = metrics.counter(
            "kubetwin_edgecore_history_dropped_total", "Values the history could not keep.", "reason"
        )
        metrics.gauge("kubetwin_edgecore_history_bytes", "Size of the history on disk.", read=self._size)
        metrics.gauge(
            "kubetwin_edgecore_history_waiting", "Values not yet written.", read=lambda: {(): float(len(self._buffer))}
        )
        metrics.gauge(
            "kubetwin_edgecore_history_failing",
            "1 while the history cannot be written.",
            read=lambda: {(): float(bool(self.trouble))},
        )

    def listen(self) -> None:
        self._bus.listen(TwinsReported, self._note)
        self._bus.subscribe(ObjectsChanged, self._take_changes)

    async def run(self, database: Database, stop: asyncio.Event) -> None:
        """Drop what is of no device here; write until `stop` is set, then what still waits, as far as the time for it
        goes. A file that cannot be opened is tried again.
        """
        try:
            self._declared = await database.run(_declared)
        except StoreError as error:
            logger.warning("what the history keeps of devices that are gone stays for now: %s", error)
        await self._write()
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self.trouble else WRITE_EVERY_S):
                    await stop.wait()
            await self._write()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_S
        while len(self._buffer) and not self.trouble and loop.time() < deadline:
            await self._write()

    def note_end(self, task: asyncio.Task[None]) -> None:
        """Of `run`, which should not end by itself."""
        if not task.cancelled() and (error := task.exception()):
            self.trouble = f"it failed: {error!r}"
            logger.error("the history failed; edge core goes on without it", exc_info=error)

    async def close(self) -> None:
        """Let go of file and thread. What could not be written is counted."""
        self._drop(len(self._buffer), "not written")
        file, self._file = self._file, None
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, file.close)
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        """Put one transaction's worth of what waits into the file."""
        loop = asyncio.get_running_loop()
        points = self._buffer.take(self._config.max_bytes // _SIZE_SHARE)
        declared, forgotten = self._declared, self._forgotten
        if not (points or forgotten or declared or self.trouble) and loop.time() < self._prune_at:
            return
        self._prune_at = loop.time() + PRUNE_EVERY_S
        self._forgotten = {}

        def job(file: HistoryFile) -> dict[DeviceId, dict[str, Last]]:
            found: dict[DeviceId, dict[str, Last]] = {}
            if declared is not None:
                file.keep_only(declared)
                found = file.last_points()
            file.keep_properties(forgotten)
            file.append(points, now_ms=now_ms())
            return found

        try:
            found = await self._with_file(job)
        except (OSError, ValueError, sqlite3.Error) as error:
            later, self._forgotten = self._forgotten, dict(forgotten)
            for device, names in later.items():
                self._forgotten[device] = names & forgotten.get(device, names)
            left = [p for p in points if p.device not in later or p.name in later[p.device]]
            self._drop(self._buffer.put_back(left), "not written")
            self._note_trouble(f"{self.path}: {error}")
            return
        self._note_trouble("")
        self._declared = None
        for device, lasts in found.items():
            self._last[device] = {**lasts, **self._last.get(device, {})}
        self._stored.add(amount=len(points))

    async def newest_first(
        self, device: DeviceId, name: str, *, since_ms: int, limit: int, max_bytes: int
    ) -> tuple[list[Point], bool]:
        """What is kept of a device, or (`name`) of one of its properties, from `since_ms` on, and whether there is more
        than `limit` or `max_bytes` let through.

        Raises:
            OSError, ValueError, sqlite3.Error: The file cannot be read.
        """
        since_ms = min(max(since_ms, now_ms() - int(self._config.max_age * 1000)), _MAX_INTEGER)
        waiting = [p for p in self._buffer.newest_first(device, name) if p.collected_ms >= since_ms]

        def job(file: HistoryFile) -> tuple[list[Point], bool]:
            return _bounded(_chain(waiting, file.newest_first(device, name, since_ms=since_ms)), limit, max_bytes)

        return await self._with_file(job)

    # Listening

    def _note(self, event: TwinsReported) -> None:
        lasts = self._last.setdefault(event.device, {})
        for twin in event.twins:
            reported, name = twin.reported, twin.property_name
            if not is_news(lasts.get(name), reported):
                continue
            lasts[name] = Last(digest(reported.value, reported.quality), reported.collected_ms)
            at_ms = min(reported.collected_ms, _MAX_INTEGER)
            point = Point(event.device, name, reported.value, reported.type, at_ms, reported.quality)
            if point.size > self._config.max_bytes // _SIZE_SHARE:
                self._drop(1, "too large")
            else:
                self._drop(self._buffer.add(point), "not written")

    async def _take_changes(self, event: ObjectsChanged) -> None:
        kept: dict[DeviceId, frozenset[str]] = {}
        for change in event.changes:
            if change.kind != "device":
                continue
            gone = change.body is None or change.replaced
            names = frozenset[str]() if gone else _property_names(change.body or b"")
            if names is None:
                continue
            device = device_id(change.namespace, change.name)
            if self._forget(device, names):
                kept[device] = names & kept.get(device, names)
        self._buffer.forget(kept)  # what waits is gone through once, however many they are

    def _forget(self, device: DeviceId, names: frozenset[str]) -> bool:
        """Keep these properties only; whether that is news to the file, and to what waits."""
        lasts = self._last.get(device, {})
        if not lasts.keys() - names and self._declared is None:
            return False
        self._last[device] = {name: last for name, last in lasts.items() if name in names}
        if not self._last[device]:
            del self._last[device]
        self._forgotten[device] = names & self._forgotten.get(device, names)
        return True

    def _drop(self, count: int, reason: str) -> None:
        if count:
            self._dropped.add(reason, amount=count)

    # The file

    async def _with_file(self, job: Callable[[HistoryFile], _T]) -> _T:
        """Run a job in the thread, with the file open.

        Raises:
            OSError, ValueError, sqlite3.Error: It was not done.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: job(self._opened()))
        except sqlite3.Error as error:
            await loop.run_in_executor(self._thread, self._let_go, error)
            raise

    def _opened(self) -> HistoryFile:
        if self._file is None:
            config = self._config
            self._file = HistoryFile(
                self.path,
                max_values=config.max_values,
                max_age_ms=int(config.max_age * 1000),
                max_bytes=config.max_bytes,
            )
        return self._file

    def _let_go(self, error: sqlite3.Error) -> None:
        """Close the file where a new start may help. A damaged one is kept under another name, in the place of one
        from before: history is not worth two.
        """
        damaged = is_damage(error)
        if not damaged and not getattr(error, "sqlite_errorname", "").startswith(_REOPEN_AFTER):
            return
        file, self._file = self._file, None
        if file is not None:
            file.close()
        if damaged:
            aside = self.path.with_name(self.path.name + ".damaged")
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + "-wal").unlink(missing_ok=True)
                self.path.replace(aside)
            logger.error("%s is damaged (%s): set aside as %s, starting with an empty one", self.path, error, aside)

    def _note_trouble(self, trouble: str) -> None:
        if bool(trouble) != bool(self.trouble):
            if trouble:
                logger.error("the history cannot be written: %s; the newest values wait", trouble)
            else:
                logger.warning("the history can be written again: %s", self.path)
        self.trouble = trouble

    def _size(self) -> dict[tuple[str, ...], float]:
        return {(): float(self._file.size_bytes() if self._file is not None else 0)}


@contextlib.asynccontextmanager
async def open_history(
    config: HistoryConfig, path: Path, *, bus: Bus, database: Database, metrics: Metrics
) -> AsyncIterator[History]:
    """Keep history while the block runs."""
    history = History(config, path, bus, metrics)
    history.listen()
    stop = asyncio.Event()
    task = asyncio.create_task(history.run(database, stop), name="history")
    task.add_done_callback(history.note_end)
    try:
        yield history
    finally:
        stop.set()
        await asyncio.wait([task])
        await history.close()


def _chain(waiting: list[Point], stored: Iterator[Point]) -> Iterator[Point]:
    yield from waiting
    yield from stored


def _bounded(points: Iterator[Point], limit: int, max_bytes: int) -> tuple[list[Point], bool]:
    taken: list[Point] = []
    size = 0
    for point in points:
        size += point.size
        if len(taken) >= limit or size > max_bytes:
            return taken, True
        taken.append(point)
    return taken, False


def _declared(db: sqlite3.Connection) -> dict[DeviceId, frozenset[str] | None]:
    """The devices that are here, with their properties."""
    return {device_id(o.namespace, o.name): _property_names(o.body) for o in list_objects(db, "device")}


def _property_names(body: bytes) -> frozenset[str] | None:
    """None: it cannot be read, which is no reason to forget anything."""
    try:
        return frozenset(p.name for p in msgspec.json.decode(body, type=_Device).spec.properties)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
