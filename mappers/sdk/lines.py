"""Lines that several devices share: a serial bus, a TCP gateway, a radio.

A driver whose devices share something keeps one `SharedLines` and gets the line of a device from it in `connect`:

    lines: SharedLines[str, Bus] = SharedLines()          # in the driver's __init__

    @asynccontextmanager
    async def connect(self, device_id, config):
        def open_(broken): return open_bus(config.port, on_lost=broken)   # an async context manager that yields a Bus
        parameters = {"baudRate": config.baud_rate}       # what all devices of a line must agree on, by YAML key
        async with self.lines.use(
            config.port, open_, device_id=device_id, parameters=parameters, settings=config
        ) as line:
            yield MyLink(device_id, line)

The link then takes a turn for each transaction, no longer than one request and its reply:

    async with self._line.turn(self._device_id, write=True) as bus:
        reply = await bus.ask(request)

Raise in the block what the device or the transport did, the line draws its conclusions: `DeviceTimeout` makes the
device a silent one, `DeviceUnreachable` breaks the line for all its users, anything else was an answer. A gateway that
says it has no way to the device is still there: raise that behind the block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Generic, TypeVar

from dmi.errors import ConfigError
from dmi.types import DeviceId, Scalar
from mappers.sdk.context import detached
from mappers.sdk.errors import DeviceError, DeviceProtocolError, DeviceTimeout, DeviceUnreachable
from mappers.sdk.line import Line

__all__ = ["Line", "Open", "SharedLines"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

logger = logging.getLogger(__name__)

CLOSE_DEADLINE_S: Final = 1.0

Open = Callable[[Callable[[str], None]], AbstractAsyncContextManager[T]]
"""Opens what a line runs over, and takes the function to call with the reason when it broke by itself."""


class _Entry(Generic[T]):
    """A line with what keeps it open."""

    def __init__(self, parameters: Mapping[str, Scalar]) -> None:
        self.leave = asyncio.Event()
        self.line: Line[T] = Line(self.leave.set)
        self.parameters = dict(parameters)
        self.ready = asyncio.Event()
        """Opened, or failed to."""
        self.error: Exception | None = None
        self.task: asyncio.Task[None]

    def refuse_other(self, parameters: Mapping[str, Scalar], device_id: DeviceId) -> None:
        for key in (*self.parameters, *parameters):
            theirs, ours = self.parameters.get(key), parameters.get(key)
            other = next((user for user in self.line.users.values() if user != device_id), None)
            if theirs != ours and other is not None:
                raise ConfigError(
                    key,
                    f"device {device_id} has {ours!r}, but device {other} uses the same line with {theirs!r}:"
                    " all devices of a line need the same",
                )


class SharedLines(Generic[K, T]):
    """The lines of one driver, by what tells them apart: a port's path, or host and port."""

    def __init__(self) -> None:
        self._entries: dict[K, _Entry[T]] = {}

    @asynccontextmanager
    async def use(
        self,
        key: K,
        open_: Open[T],
        *,
        device_id: DeviceId,
        parameters: Mapping[str, Scalar] | None = None,
        settings: object = None,
    ) -> AsyncIterator[Line[T]]:
        """The line `key`, opened by its first user and closed by its last; a broken one is opened anew.

        Args:
            open_: Used by the first. Its failure is told to all who wait for it.
            parameters: What all users of the line must agree on, by the key of the protocol configuration.
            settings: All of the device's own. When they changed, its back-off while it was silent is over.

        Raises:
            ConfigError: Another device uses the line with other parameters; names both.
            DeviceError: The line cannot be opened.
        """
        parameters = parameters or {}
        entry = await self._entry(key, open_, device_id, parameters)
        token = object()
        entry.line.join(token, device_id, settings)
        try:
            await entry.ready.wait()
            if entry.error is not None:
                raise _told(entry.error, device_id)
            yield entry.line
        finally:
            del entry.line.users[token]
            if not entry.line.users:
                await self._close(entry)

    async def _entry(self, key: K, open_: Open[T], device_id: DeviceId, parameters: Mapping[str, Scalar]) -> _Entry[T]:
        while (entry := self._entries.get(key)) is not None:
            if not entry.leave.is_set() and entry.error is None:
                entry.refuse_other(parameters, device_id)
                if any(user != device_id for user in entry.line.users.values()) or entry.parameters == parameters:
                    return entry
                entry.line.broken("the device was declared anew")
            await asyncio.wait([entry.task])
        entry = _Entry(parameters)
        entry.task = asyncio.create_task(self._hold(key, entry, open_), name=f"line {key}", context=detached())
        self._entries[key] = entry
        return entry

    async def _hold(self, key: K, entry: _Entry[T], open_: Open[T]) -> None:
        """Open the line and keep it until its last user left or it broke. In a task of its own, so that no user's end
        is the end of it."""
        try:
            async with open_(entry.line.broken) as opened:
                entry.line.opened(opened)
                entry.ready.set()
                await entry.leave.wait()
        except Exception as error:  # noqa: BLE001  # told to those who wait, or logged
            if entry.ready.is_set():
                logger.warning("closing line %s: %s", key, error)
            else:
                entry.error = error
        finally:
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.ready.set()

    async def _close(self, entry: _Entry[T]) -> None:
        if not entry.ready.is_set():
            entry.task.cancel()  # still opening, and nobody waits for it any more
        entry.leave.set()
        try:
            await asyncio.wait([entry.task], timeout=CLOSE_DEADLINE_S)
        finally:
            entry.task.cancel()


def _told(error: Exception, device_id: DeviceId) -> Exception:
    """The failure to open a line, for one of those who waited."""
    match error:
        case ConfigError():
            told: Exception = ConfigError(error.path, error.problem)
        case DeviceTimeout():
            told = DeviceTimeout(device_id, error.problem)
        case DeviceProtocolError():
            told = DeviceProtocolError(device_id, error.problem)
        case DeviceError():
            told = DeviceUnreachable(device_id, error.problem)
        case _:
            return error
    told.__cause__ = error
    return told
