"""Proxies between a driver and its device that lose, delay and spoil what passes: for TCP, UDP and serial lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import socket
import struct
import tty
from types import TracebackType
from typing import Any, Self

from mappers.sdk.testing.faults import Faults

__all__ = ["PtyFaultProxy", "TcpFaultProxy", "UdpFaultProxy"]

_CHUNK = 65536


class _Wire:
    """What the three have in common: the faults, and counters of what passed."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.requests_bytes = 0
        """Bytes that came from the driver, passed on or not."""
        self.reply_bytes = 0
        """Bytes that went to the driver."""
        self._random = random.Random(0)  # noqa: S311  # noise that is the same each time

    def request(self, data: bytes) -> bytes:
        """What of a request arrives at the device."""
        self.requests_bytes += len(data)
        return b"" if self.faults.silent or self.faults.drop_requests else data

    async def reply(self, data: bytes) -> bytes:
        """What of a reply arrives at the driver, once its delay is over."""
        faults = self.faults
        if faults.bytes_per_s:
            await asyncio.sleep(len(data) / faults.bytes_per_s)
        if faults.delay_s:
            await asyncio.sleep(faults.delay_s)
        if faults.silent or faults.drop:
            return b""
        if faults.truncate:
            data = data[: len(data) // 2]
        if faults.garbage:
            data = self._random.randbytes(len(data))
        if faults.corrupt and data:
            spoilt, at = bytearray(data), self._random.randrange(len(data))
            spoilt[at] ^= 1 << self._random.randrange(8)
            data = bytes(spoilt)
        self.reply_bytes += len(data)
        return data


class TcpFaultProxy(_Wire):
    """Listens on `port` of the loopback and passes on to `host:target_port`.

    A target that is away shows as a connection that is closed at once, as through a gateway.
    """

    def __init__(self, host: str, target_port: int, *, faults: Faults | None = None) -> None:
        super().__init__(faults)
        self.host = host
        self.target_port = target_port
        self.port = 0
        self.connections = 0
        """Connections taken so far."""
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def cut(self) -> None:
        """Reset every connection there is; new ones are taken."""
        tasks = list(self._open)
        for task, writer in self._open.items():
            if (own := writer.get_extra_info("socket")) is not None:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            writer.transport.abort()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self.faults.refuse:
            writer.transport.abort()
            return
        self.connections += 1
        self._open[task] = writer
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two is gone, or `cut` was called: nobody waits for this task's result
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device_reader, device_writer = await asyncio.open_connection(self.host, self.target_port)
        try:
            directions = [
                asyncio.create_task(self._requests(reader, device_writer), name="proxy requests"),
                asyncio.create_task(self._replies(device_reader, writer), name="proxy replies"),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        finally:
            device_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if passed := self.request(data):
                writer.write(passed)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if passed := await self.reply(data):
                writer.write(passed)
                await writer.drain()
        while self.faults.silent:  # noqa: ASYNC110  # a switch, looked at now and then; the far end closed, and nobody on this side is to know
            await asyncio.sleep(0.02)


class UdpFaultProxy(_Wire):
    """Takes datagrams on `port` of the loopback and passes them on to `host:target_port`, replies to whoever sent
    last."""

    def __init__(self, host: str, target_port: int, *, faults: Faults | None = None) -> None:
        super().__init__(faults)
        self.host = host
        self.target_port = target_port
        self.port = 0
        self._stack = contextlib.AsyncExitStack()
        self._driver: tuple[str, int] | None = None
        self._replies: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1000)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        to_device, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._from_device), remote_addr=(self.host, self.target_port)
        )
        self._stack.callback(to_device.close)

        def from_driver(data: bytes, sender: tuple[str, int]) -> None:
            self._driver = sender
            if passed := self.request(data):
                to_device.sendto(passed)

        to_driver, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(from_driver), local_addr=("127.0.0.1", self.port)
        )
        self._stack.callback(to_driver.close)
        self.port = to_driver.get_extra_info("sockname")[1]
        task = asyncio.create_task(self._send(to_driver), name="proxy replies")
        self._stack.push_async_callback(_end, task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _from_device(self, data: bytes, _: tuple[str, int]) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # as a network does
            self._replies.put_nowait(data)

    async def _send(self, transport: asyncio.DatagramTransport) -> None:
        while True:
            data = await self.reply(await self._replies.get())
            if data and self._driver is not None:
                transport.sendto(data, self._driver)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Any) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, addr)


class PtyFaultProxy(_Wire):
    """A serial line as two pseudo-terminals: the driver opens `driver_path`, the simulated device `device_path`."""

    def __init__(self, *, faults: Faults | None = None) -> None:
        super().__init__(faults)
        self.driver_path = ""
        self.device_path = ""
        self._driver_fd = -1
        self._device_fd = -1
        self._replies: asyncio.Queue[bytes] = asyncio.Queue(maxsize=10_000)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            self._driver_fd, self.driver_path = self._open(stack)
            self._device_fd, self.device_path = self._open(stack)
            loop.add_reader(self._driver_fd, self._from_driver)
            stack.callback(loop.remove_reader, self._driver_fd)
            loop.add_reader(self._device_fd, self._from_device)
            stack.callback(loop.remove_reader, self._device_fd)
            stack.push_async_callback(_end, asyncio.create_task(self._send(), name="proxy replies"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _open(self, stack: contextlib.AsyncExitStack) -> tuple[int, str]:
        """A terminal that stays open on our side, so that the other may come and go."""
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        stack.callback(os.close, theirs)
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        return ours, os.ttyname(theirs)

    def _from_driver(self) -> None:
        if passed := self.request(_read(self._driver_fd)):
            _write(self._device_fd, passed)

    def _from_device(self) -> None:
        if data := _read(self._device_fd):
            with contextlib.suppress(asyncio.QueueFull):
                self._replies.put_nowait(data)

    async def _send(self) -> None:
        while True:
            if data := await self.reply(await self._replies.get()):
                _write(self._driver_fd, data)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except (BlockingIOError, OSError):
        return b""


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError):  # nobody reads at the other end: a line has no memory
        os.write(fd, data)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
