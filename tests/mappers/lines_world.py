"""A bus of plain coroutines, and lines over it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from mappers.sdk import (
    DeviceId,
    DeviceTimeout,
    Line,
    SharedLines,
)

A, B, C = DeviceId("plant/a"), DeviceId("plant/b"), DeviceId("plant/c")


class Bus:
    """What the line runs over. It notices when two use it at once."""

    def __init__(self) -> None:
        self.users = 0
        self.log: list[str] = []
        self.reply = asyncio.Event()
        self.reply.set()

    async def ask(self, who: str, *, seconds: float = 0.0) -> None:
        assert not self.users, "two at once"
        self.users += 1
        self.log.append(who)
        try:
            await asyncio.sleep(seconds)
            await self.reply.wait()
        finally:
            self.users -= 1


class Opener:
    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.fails: Exception | None = None
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.opening = asyncio.Event()
        self.broken: Callable[[str], None]

    @contextlib.asynccontextmanager
    async def __call__(self, broken: Callable[[str], None]) -> AsyncIterator[Bus]:
        self.opening.set()
        await self.may_open.wait()
        if self.fails is not None:
            raise self.fails
        self.opened += 1
        self.broken = broken
        try:
            yield Bus()
        finally:
            self.closed += 1


async def ended(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(20):
        return await coroutine


@contextlib.asynccontextmanager
async def line_of(*devices: DeviceId) -> AsyncIterator[tuple[Line[Bus], Opener]]:
    lines: SharedLines[str, Bus] = SharedLines()
    opener = Opener()
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            line = await stack.enter_async_context(lines.use("bus", opener, device_id=device))
        yield line, opener


async def silent(line: Line[Bus], device: DeviceId) -> None:
    """Make a device silent with its back-off over."""
    with pytest.raises(DeviceTimeout):
        async with line.turn(device):
            raise DeviceTimeout(device, "nothing")
    silence = line._silences.of(device)
    assert silence is not None
    silence.until = 0.0
