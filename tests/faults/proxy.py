"""A TCP path that can be spoilt in every way a network spoils one. Bytes are passed as they are, TLS untouched.

What happens to each direction of a connection is said in `Faults`; what is random comes from a seed. Commands may come
from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct

from tests.faults.loop_thread import LoopThread

__all__ = ["CLEAN", "Direction", "FaultProxy", "Faults", "fault_proxy"]

Direction = Literal["up", "down"]
"""`up`: from who dials to who listens."""
_READ_BYTES: Final = 16 * 1024
_IN_TRANSIT: Final = 64
"""Reads that may be on the way in one direction; then the sender has to wait."""
_RESET: Final = struct.pack("ii", 1, 0)


class Faults(Struct, frozen=True):
    """Of one direction of a connection. Numbers of bytes count from when the faults were set."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much more, another for each read. Order is kept, as TCP does."""
    bytes_per_s: float = 0.0
    """0: as fast as it goes."""
    hold_after: int | None = None
    """What comes later is kept until `heal`: one connection's bytes fall behind another's. The sender's end may be gone
    by then, and who listens is not told before."""
    swallow_after: int | None = None
    """What comes later is taken and goes nowhere, and nobody is told: a half-open connection."""
    cut_after: int | None = None
    """So many arrive, then both ends are cut off."""
    flip_after: int | None = None
    """One bit of the byte after so many is another one."""


CLEAN: Final = Faults()


class _Cut(Exception):
    """The path is cut here."""


class _Pump:
    """One direction of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: random.Random) -> None:
        self.passed = 0
        """Bytes that arrived, since the faults were set."""
        self._reader = reader
        self._writer = writer
        self._rng = rng
        self._faults = CLEAN
        self._free = asyncio.Event()
        self._free.set()
        self._due = 0.0

    def set(self, faults: Faults) -> None:
        self._faults, self.passed = faults, 0
        self._free.set()

    async def run(self) -> None:
        """Until either end is gone, or the path is cut."""
        loop, transit = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](_IN_TRANSIT)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(transit))
            while data := await self._read():
                faults = self._faults
                due = max(self._due, loop.time() + faults.delay_s + self._rng.uniform(0, faults.jitter_s))
                if faults.bytes_per_s:
                    due += len(data) / faults.bytes_per_s
                self._due = due
                await transit.put((due, data))
            await transit.put((self._due, b""))

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except OSError:  # reset; what came before it is still delivered
            return b""

    def release(self) -> None:
        self._free.set()

    async def _deliver(self, transit: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await transit.get()
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            hold_after = self._faults.hold_after
            if hold_after is not None and self.passed + len(data) > hold_after:
                at = max(0, hold_after - self.passed)
                await self._write(data[:at])
                data = data[at:]
                self._free.clear()
                await self._free.wait()
                self._faults = CLEAN
            if not data:
                raise EOFError
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        faults, end = self._faults, self.passed + len(data)
        if faults.flip_after is not None and self.passed <= faults.flip_after < end:
            at = faults.flip_after - self.passed
            data = data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]
        limits = [limit for limit in (faults.cut_after, faults.swallow_after) if limit is not None]
        data = data[: max(0, min([end, *limits]) - self.passed)]
        self.passed += len(data)
        self._writer.write(data)
        await self._writer.drain()
        if faults.cut_after is not None and end >= faults.cut_after:
            raise _Cut


class _Pair:
    """Both directions of one connection."""

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.writers = (here, there)
        self.pumps: dict[Direction, _Pump] = {}

    def cut(self, *, reset: bool) -> None:
        """At once, what is on the way lost. Without `reset` both ends see an orderly end of the stream."""
        for writer in self.writers:
            if reset and not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class FaultProxy:
    """Made by `fault_proxy`. `ports`: as many as asked for, all the same path."""

    def __init__(self, thread: LoopThread, target: tuple[str, int], *, seed: int) -> None:
        self.ports: list[int] = []
        self.target = target
        self.accepted = 0
        """Connections that reached the other end."""
        self.cuts = 0
        """Connections that were cut here, by command or after so many bytes."""
        self._thread = thread
        self._rng = random.Random(seed)
        self._new: dict[Direction, Faults] = {"up": CLEAN, "down": CLEAN}
        self._refusing = False
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: dict[asyncio.Task[None], _Pair] = {}
        self._came = threading.Condition()

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def addresses(self) -> str:
        """As `edgeHub.websocket.server` and `edgeHub.httpServer` list several."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    @property
    def open(self) -> int:
        """Connections there are."""
        return len(self._pairs)

    def set(self, *, up: Faults = CLEAN, down: Faults = CLEAN, new: bool = True, existing: bool = True) -> None:
        """From now on, for connections that come and for those there are."""
        faults: dict[Direction, Faults] = {"up": up, "down": down}

        def put() -> None:
            if new:
                self._new = faults
            for pair in list(self._pairs.values()) if existing else ():
                for direction, pump in pair.pumps.items():
                    pump.set(faults[direction])

        self._thread.call(put)

    def heal(self) -> None:
        """Everything passes, and what was held arrives. Connections whose bytes were swallowed stay broken."""
        self._refusing = False
        self.set(existing=False)

        def release() -> None:
            for pair in self._pairs.values():
                for pump in pair.pumps.values():
                    pump.release()

        self._thread.call(release)

    def cut(self, *, reset: bool = True) -> int:
        """Every connection there is; returns how many."""

        def each() -> int:
            pairs = list(self._pairs.values())
            for pair in pairs:
                pair.cut(reset=reset)
            self.cuts += len(pairs)
            return len(pairs)

        return self._thread.call(each)

    def cut_one(self, *, reset: bool = True, within_s: float = 20.0) -> None:
        """Wait for a connection if there is none, and cut it."""
        end = time.monotonic() + within_s
        while not self.cut(reset=reset):
            assert time.monotonic() < end, f"not within {within_s:g} s: a connection to cut; {self.accepted} so far"
            time.sleep(0.005)

    def refuse(self, refusing: bool = True) -> None:
        """Whether who dials is turned away at once."""
        self._refusing = refusing

    def passed(self, direction: Direction) -> int:
        """Bytes that arrived over the connections there are, since their faults were set."""
        return self._thread.call(
            lambda: sum(pair.pumps[direction].passed for pair in self._pairs.values() if pair.pumps)
        )

    def until_accepted(self, count: int, *, within_s: float) -> None:
        """Wait for so many connections since the beginning."""
        with self._came:
            assert self._came.wait_for(lambda: self.accepted >= count, within_s), (
                f"not within {within_s:g} s: connection {count}; there were {self.accepted}"
            )

    async def start(self, ports: int, host: str) -> None:
        for _ in range(ports):
            server = await asyncio.start_server(self._accept, host, 0, limit=_READ_BYTES)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self._refusing:
                return
            there_reader, there = await asyncio.open_connection(*self.target, limit=_READ_BYTES)
            writers.append(there)
            for one in writers:
                one.transport.set_write_buffer_limits(0)  # what was passed on is in the kernel's hands
            pair = _Pair(writer, there)
            pair.pumps = {"up": _Pump(reader, there, self._rng), "down": _Pump(there_reader, writer, self._rng)}
            for direction, pump in pair.pumps.items():
                pump.set(self._new[direction])
            self._pairs[task] = pair
            with self._came:
                self.accepted += 1
                self._came.notify_all()
            async with asyncio.TaskGroup() as tasks:
                for pump in pair.pumps.values():
                    tasks.create_task(pump.run())
        except* _Cut:
            self.cuts += 1
        except* (OSError, EOFError):
            pass
        finally:
            self._pairs.pop(task, None)
            self._tasks.discard(task)
            for one in writers:
                one.transport.abort()


@contextlib.contextmanager
def fault_proxy(
    thread: LoopThread, target: tuple[str, int], *, seed: int = 0, ports: int = 1, host: str = "127.0.0.1"
) -> Iterator[FaultProxy]:
    """A path to `target` while the block runs."""
    proxy = FaultProxy(thread, target, seed=seed)
    thread.run(proxy.start(ports, host))
    try:
        yield proxy
    finally:
        thread.run(proxy.stop())
