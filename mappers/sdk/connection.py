"""The link to one device: opened, kept, opened again with back-off for ever, and every call on it contained.

A driver is somebody else's code. What it raises comes out as a `DeviceError`, what it forgets to end gets a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from dmi.errors import ConfigError, ConversionError
from dmi.types import DeviceId
from dmi.values import Value
from mappers.sdk.driver import AnyDriver, Link, Property, ReadResult
from mappers.sdk.errors import DeviceError, DeviceProtocolError, DeviceTimeout, DeviceUnreachable
from mappers.sdk.schedule import backoff

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

RECONNECT_S: Final = (0.5, 5.0)
CALL_DEADLINE_S: Final = 30.0
"""Drivers have timeouts of their own; this one is for those that hang."""
CLOSE_DEADLINE_S: Final = 1.0


@asynccontextmanager
async def _call() -> AsyncIterator[None]:
    """Around a call of the driver: it ends at the deadline, and with the task. A library can swallow the cancellation,
    as `asyncio.wait_for` of Python 3.11 does when the reply comes at that moment (CPython gh-86296)."""
    try:
        async with asyncio.timeout(CALL_DEADLINE_S):
            yield
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


class Connection:
    """Owns the link of one device. `on_change` is called after the link came up, went down, or could not be opened."""

    def __init__(self, driver: AnyDriver, device_id: DeviceId, on_change: Callable[[], None]) -> None:
        self._driver = driver
        self._device_id = device_id
        self._on_change = on_change
        self._config: Any = None
        self._declared = asyncio.Event()
        self._ended = asyncio.Event()
        self._proven = False
        self._logged_bug = ""
        self.link: Link[Any] | None = None
        self.answered = False
        """The device has answered on this link."""
        self.reason = ""
        """Why there is no link; empty while none was tried yet."""
        self.epoch = 0
        """Counts the protocol configs: what was read under an earlier one is not this device's."""
        self.driver_failed = False
        """The last failure was a bug of the driver, not the device's."""
        self.config_problem = ""
        """The driver refused the declaration when it connected; not tried again until it changes."""

    def declare(self, config: Any) -> None:
        """Connect with this protocol config from now on; None: not at all. An equal one changes nothing."""
        if config == self._config and not self.config_problem:
            return
        self._config = config
        self.config_problem = ""
        self.link, self.answered, self.reason = None, False, ""
        self.epoch += 1
        self._declared.set()
        self._ended.set()

    async def run(self) -> None:
        """Keep the link open until cancelled."""
        delays = backoff(*RECONNECT_S)
        while True:
            self._declared.clear()
            self._ended.clear()
            self._proven = False
            if self._config is not None and not self.config_problem:
                await self._hold(self._config)
            if self._proven:
                delays = backoff(*RECONNECT_S)
            if self._config is None or self.config_problem:
                await self._declared.wait()
            if not self._declared.is_set():
                await self._pause(next(delays))
            if self._declared.is_set():
                delays = backoff(*RECONNECT_S)

    async def _pause(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._declared.wait()
        except TimeoutError:
            pass

    async def _hold(self, config: Any) -> None:
        """Open one link and keep it until it is dropped or the declaration changes."""
        stack = AsyncExitStack()
        try:
            try:
                async with _call():
                    link = await stack.enter_async_context(self._driver.connect(self._device_id, config))
            except ConfigError as error:
                self.config_problem = f"spec.protocol.configData.{error}"
                self._lose(self.config_problem)
                return
            except Exception as error:  # noqa: BLE001  # a driver's failure ends here
                self._lose(self._contained(error, "connect").problem)
                return
            self.link, self.answered, self.reason = link, False, ""
            self._on_change()
            await self._ended.wait()
        finally:
            self.link, self.answered = None, False  # no word about it: whether the next one opens decides
            await self._close(stack)

    async def _close(self, stack: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await stack.aclose()
        except Exception as error:  # noqa: BLE001  # as above
            self._contained(error, "close")

    def _lose(self, reason: str) -> None:
        self.link, self.answered, self.reason = None, False, reason
        self._on_change()

    async def read(self, properties: Sequence[Property[Any]]) -> Mapping[str, ReadResult]:
        """One result per property. What concerns all of them is the result of each: only cancellation raises."""
        link = self.link
        if link is None:
            lost = DeviceUnreachable(self._device_id, self.reason or "not connected yet")
            return {p.name: lost for p in properties}
        try:
            async with _call():
                results = dict(await link.read_many(properties))
        except Exception as error:  # noqa: BLE001  # as above
            failure = self._failed(link, error, "read_many")
            return {p.name: failure for p in properties}
        for p in properties:
            if p.name not in results:
                results[p.name] = DeviceProtocolError(self._device_id, "the driver gave no result")
        if lost_now := [r for r in results.values() if isinstance(r, DeviceUnreachable)]:
            self._failed(link, lost_now[0], "read_many")
        if any(not isinstance(r, DeviceTimeout | DeviceUnreachable) for r in results.values()):
            self._confirm(link)
        return results

    async def write(self, property_: Property[Any], value: Value) -> None:
        """
        Raises:
            DeviceError: Not written, or not known to be.
            ConversionError: The device cannot hold the value.
        """
        link = self.link
        if link is None:
            raise DeviceUnreachable(self._device_id, self.reason or "not connected yet")
        try:
            async with _call():
                await link.write(property_, value)
        except ConversionError:
            raise
        except Exception as error:
            raise self._failed(link, error, "write") from error
        self._confirm(link)

    def _confirm(self, link: Link[Any]) -> None:
        if link is self.link and not self.answered:
            self.answered = self._proven = True
            self._on_change()

    def _failed(self, link: Link[Any], error: Exception, what: str) -> DeviceError:
        failure = self._contained(error, what)
        broken = isinstance(failure, DeviceUnreachable) or not isinstance(error, DeviceError)
        if broken and link is self.link:
            self._lose(failure.problem)
            self._ended.set()
        return failure

    def _contained(self, error: Exception, what: str) -> DeviceError:
        """A driver's exception as a `DeviceError`; a bug is logged, once for as long as it stays the same."""
        self.driver_failed = False
        if isinstance(error, DeviceError):
            return error
        if isinstance(error, TimeoutError):
            return DeviceTimeout(self._device_id, f"the driver's {what} did not end in time")
        self.driver_failed = True
        bug = f"the driver failed in {what}: {error!r}"
        if bug != self._logged_bug:
            self._logged_bug = bug
            logger.error("device %s: %s", self._device_id, bug, exc_info=error)
        return DeviceProtocolError(self._device_id, bug)
