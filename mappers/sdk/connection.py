"""The link to one device: opened, kept, opened again with back-off for ever, and every call on it contained.

A driver is somebody else's code. What it raises comes out as a `DeviceError`, what it forgets to end gets a deadline,
and tasks it leaves behind a closed link are ended and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from dmi.errors import ConfigError, ConversionError
from dmi.types import DeviceId
from dmi.values import Value
from mappers.sdk.alarm import Alarm
from mappers.sdk.calls import CallClosed, Lane
from mappers.sdk.context import LinkScope
from mappers.sdk.driver import AnyDriver, CanCall, CanRead, CanSubscribe, CanWrite, Property, ReadResult
from mappers.sdk.errors import (
    DeviceError,
    DeviceProtocolError,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    plain_reason,
)
from mappers.sdk.leaks import end_leaked, watch_open
from mappers.sdk.schedule import backoff
from mappers.sdk.stats import DeviceStats

__all__ = ["Connection", "OpenLink"]

logger = logging.getLogger(__name__)

RECONNECT_S: Final = (0.5, 5.0)
CONFIG_RETRY_S = 30.0
"""A declaration the driver refused when it connected is tried again: the reason may lie outside it, in a file, or in
the declaration of another device on the same line."""
CALL_DEADLINE_S: Final = 30.0
"""Drivers have timeouts of their own; this one is for those that hang. Turns on a shared line begin it anew."""
CLOSE_DEADLINE_S: Final = 1.0
SILENT_AFTER: Final = 3
"""Reads in a row without an answer after which a device may count as away although its link is open."""


class OpenLink:
    """An open link, and what it can do: asked once, for `isinstance` with a protocol is slow."""

    __slots__ = ("calls", "reads", "subscribes", "writes")

    def __init__(self, link: object) -> None:
        self.reads: CanRead[Any] | None = link if isinstance(link, CanRead) else None
        self.subscribes: CanSubscribe[Any] | None = link if isinstance(link, CanSubscribe) else None
        self.writes: CanWrite[Any] | None = link if isinstance(link, CanWrite) else None
        self.calls: CanCall[Any] | None = link if isinstance(link, CanCall) else None


class Connection:
    """Owns the link of one device. `on_change` is called after the link came up, went down, or could not be opened."""

    def __init__(
        self, driver: AnyDriver, device_id: DeviceId, stats: DeviceStats, on_change: Callable[[], None]
    ) -> None:
        self._driver = driver
        self._device_id = device_id
        self._stats = stats
        self._on_change = on_change
        self._config: Any = None
        self._alarm = Alarm()
        self._scope: LinkScope | None = None
        """Of the link that is open, or about to be."""
        self._dialling = False
        self._declared = False
        """Since the last attempt to connect."""
        self._proven = False
        self._opened = 0
        self._logged_bug = ""
        self.on_stuck: Callable[[], None] = lambda: None
        """Called when a call does not even end on being cancelled: its task is lost."""
        self._opening = Lane(self._stuck)
        self.cycle = Lane(self._stuck)
        """For what reads: one at a time."""
        self.command = Lane(self._stuck)
        """For what writes and reads back: one at a time, beside the `cycle`."""
        self.link: OpenLink | None = None
        self.answered = False
        """The device has answered on this link."""
        self.reason = ""
        """Why there is no link; empty while none was tried yet."""
        self.silence = ""
        """Why the last reads had no answer, from the third on; the link is open all the same."""
        self._unanswered = 0
        self.epoch = 0
        """Counts the protocol configs: what was read under an earlier one is not this device's."""
        self.driver_failed = False
        """The last failure was a bug of the driver, not the device's."""
        self.config_problem = ""
        """The driver refused the declaration when it last connected."""

    def declare(self, config: Any) -> None:
        """Connect with this protocol config from now on; None: not at all. An equal one changes nothing."""
        if config == self._config and not self.config_problem:
            return
        self._config = config
        self.config_problem = ""
        self.link, self.answered, self.reason = None, False, ""
        self.epoch += 1
        self._declared = True
        self._alarm.ring()
        if self._dialling:
            self._opening.abort()

    async def run(self) -> None:
        """Keep the link open until cancelled."""
        loop, delays = asyncio.get_running_loop(), backoff(*RECONNECT_S)
        while True:
            self._declared, self._proven = False, False
            if self._config is not None:
                await self._hold(self._config)
            if self._proven or self._declared:
                delays = backoff(*RECONNECT_S)
            again_at = loop.time() + (CONFIG_RETRY_S if self.config_problem else next(delays))
            while not self._declared and (self._config is None or loop.time() < again_at):
                await self._alarm.wait(None if self._config is None else again_at)

    async def _hold(self, config: Any) -> None:
        """Open one link and keep it until it is dropped or the declaration changes."""
        stack, scope, link = AsyncExitStack(), LinkScope(), None
        opening, self._scope = self._opening, scope
        try:
            self._dialling = True
            try:
                with opening.within(CALL_DEADLINE_S, scope):
                    link = OpenLink(await stack.enter_async_context(self._driver.connect(self._device_id, config)))
                if link.reads is None and link.subscribes is None:
                    raise TypeError("its link has neither read_many nor subscribe")
            except CallClosed:
                return  # declared anew
            except ConfigError as error:
                self.config_problem = f"spec.protocol.configData.{error}"
                self._lose(self.config_problem)
                return
            except Exception as error:  # noqa: BLE001  # a driver's failure ends here
                self.config_problem = ""
                self._lose(self._contained(error, "connect").problem)
                return
            finally:
                if self._scope is scope:
                    self._dialling = False
            self.config_problem = ""
            if self._declared:
                return  # a newer declaration came meanwhile
            self._stats.reconnects += self._opened > 0
            self._opened += 1
            self.link, self.answered, self.reason = link, False, ""
            self.silence, self._unanswered = "", 0
            watch_open(scope, self._piled_up)
            self._on_change()
            while self.link is link:
                await self._alarm.wait()
        finally:
            if self._scope is scope:
                self.link, self.answered = None, False  # no word about it: whether the next one opens decides
                self.cycle.abort()
                self.command.abort()
                self._scope = None
            else:  # given up long ago, and the next link has begun: only what is ours is left to be closed
                opening = Lane(lambda: None)
            link = None
            await self._close(stack, scope, opening)
            end_leaked(scope, self._leaked)

    async def _close(self, stack: AsyncExitStack, scope: LinkScope, lane: Lane) -> None:
        try:
            with lane.within(CLOSE_DEADLINE_S, scope):
                await stack.aclose()
        except Exception as error:  # noqa: BLE001  # as above
            self._contained(error, "close")

    def _leaked(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        self._stats.leaked_tasks += len(tasks)
        names = ", ".join(sorted(t.get_name() for t in tasks)[:5])
        logger.error(
            "device %s: the driver left %d tasks running behind a closed link; they are ended: %s",
            self._device_id,
            len(tasks),
            names,
        )

    def _piled_up(self, tasks: int) -> None:
        self._stats.driver_errors += 1
        self.driver_failed = True
        self.lose(f"the driver leaks: {tasks} tasks of it run on and on")

    def reset(self) -> None:
        """After the tasks of a device were ended or given up: start from nothing. What one of them still does, when
        its call ends at last, concerns nobody any more."""
        self.link, self.answered = None, False
        self._scope, self._dialling = None, False
        for lane in (self._opening, self.cycle, self.command):
            lane.give_up()
        self._opening, self.cycle, self.command = Lane(self._stuck), Lane(self._stuck), Lane(self._stuck)

    def fail(self, reason: str) -> None:
        """There is no link, for a reason that is not the device's."""
        self.driver_failed = True
        self._lose(reason)

    def close(self) -> None:
        """No call comes any more."""
        for lane in (self.cycle, self.command, self._opening):
            lane.close()

    def lose(self, reason: str) -> None:
        """The link is of no use: close it, and connect again with back-off."""
        self._lose(reason)
        self._alarm.ring()

    def _lose(self, reason: str) -> None:
        self.link, self.answered, self.reason = None, False, reason
        self._on_change()

    # calls of the link

    def unreachable(self) -> DeviceUnreachable:
        return DeviceUnreachable(self._device_id, self.reason or "not connected yet")

    async def read(self, properties: Sequence[Property[Any]], lane: Lane) -> Mapping[str, ReadResult]:
        """One result per property. What concerns all of them is the result of each: only cancellation raises."""
        link = self.link
        if link is None:
            return dict.fromkeys((p.name for p in properties), self.unreachable())
        if link.reads is None:
            cannot = DeviceUnsupported(self._device_id, "the driver cannot read it, and the device does not send it")
            return dict.fromkeys((p.name for p in properties), cannot)
        try:
            with lane.within(CALL_DEADLINE_S, self._scope):
                results = dict(await link.reads.read_many(properties))
        except Exception as error:  # noqa: BLE001  # as above
            results = dict.fromkeys((p.name for p in properties), self._failed(link, error, "read_many"))
            if isinstance(error, CallClosed):
                return results
        self._look_at(link, properties, results)
        return results

    def _look_at(self, link: OpenLink, properties: Sequence[Property[Any]], results: dict[str, ReadResult]) -> None:
        """What the results of a read say about the link; and there is one for each property."""
        answered, lost, unanswered = False, None, ""
        for p in properties:
            result = results.get(p.name)
            if result is None:
                results[p.name] = DeviceProtocolError(self._device_id, "the driver gave no result")
            elif isinstance(result, DeviceUnreachable):
                lost = result
            elif isinstance(result, DeviceTimeout):
                unanswered = result.problem
            else:
                answered = True
        if lost is not None:
            self._failed(link, lost, "read_many")
        if answered:
            self.confirm(link)
        elif unanswered and link is self.link:
            self._unanswered += 1
            if self._unanswered >= SILENT_AFTER:
                self.silence = unanswered

    async def subscribe(
        self, properties: Sequence[Property[Any]], push: Callable[[OpenLink, Mapping[str, ReadResult]], None]
    ) -> Collection[str]:
        """The names of those the device sends by itself from now on.

        Raises:
            DeviceError: Not possible. Anything but a `DeviceError` from the driver has closed the link.
        """
        link = self.link
        if link is None:
            raise self.unreachable()
        if link.subscribes is None:
            return ()
        try:
            with self.cycle.within(CALL_DEADLINE_S, self._scope):
                names = await link.subscribes.subscribe(properties, lambda values: push(link, values))
            known = {p.name for p in properties} & set(names)
        except Exception as error:
            raise self._failed(link, error, "subscribe") from error
        if known:
            self.confirm(link)
        return known

    async def write(self, property_: Property[Any], value: Value, lane: Lane, method: str = "") -> None:
        """Write, or call `method` where the link has methods of its own.

        Raises:
            DeviceError: Not written, or not known to be.
            ConversionError: The device cannot hold the value.
        """
        link = self.link
        if link is None:
            raise self.unreachable()
        if link.writes is None and not (method and link.calls is not None):
            raise DeviceUnsupported(self._device_id, f"the {self._driver.protocol} driver cannot write it")
        self._stats.writes += 1
        try:
            with lane.within(CALL_DEADLINE_S, self._scope):
                if method and link.calls is not None:
                    await link.calls.call(method, property_, value)
                elif link.writes is not None:
                    await link.writes.write(property_, value)
        except ConversionError:
            self._stats.write_failures += 1
            raise
        except Exception as error:
            self._stats.write_failures += 1
            raise self._failed(link, error, "call" if method else "write") from error
        self.confirm(link)

    def confirm(self, link: OpenLink) -> None:
        """The device has answered on this link."""
        if link is not self.link:
            return
        self.silence, self._unanswered = "", 0
        if not self.answered:
            self.answered = self._proven = True
            self._on_change()

    # containment

    def _stuck(self) -> None:
        self._stats.driver_errors += 1
        self.on_stuck()

    def _failed(self, link: OpenLink, error: Exception, what: str) -> DeviceError:
        if isinstance(error, CallClosed):
            return self.unreachable()
        failure = self._contained(error, what)
        broken = isinstance(failure, DeviceUnreachable) or not isinstance(error, DeviceError)
        if broken and link is self.link:
            self.lose(failure.problem)
        return failure

    def _contained(self, error: Exception, what: str) -> DeviceError:
        """A driver's exception as a `DeviceError`; a bug is logged, once for as long as it stays the same."""
        self.driver_failed = False
        if isinstance(error, DeviceError):
            return error
        self._stats.driver_errors += 1
        if isinstance(error, TimeoutError):
            return DeviceTimeout(self._device_id, f"the driver's {what} did not end in time")
        self.driver_failed = True
        bug = plain_reason(f"the driver failed in {what}: {error!r}")
        if bug != self._logged_bug:
            self._logged_bug = bug
            logger.error("device %s: %s", self._device_id, bug, exc_info=error)
        return DeviceProtocolError(self._device_id, bug)
