"""A protocol of one line a request, over TCP: its device, a driver that passes the conformance suite, and its subject.

7 get 1 level  →  7 = 12          8 set 1 set-point 40  →  8 ok
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from dmi.values import Value, format_value, parse_value
from mappers.sdk import (
    ConversionError,
    DeviceError,
    DeviceId,
    DeviceProtocolError,
    DeviceTimeout,
    DeviceUnreachable,
    Driver,
    Property,
    Push,
    ReadResult,
)
from mappers.sdk.testing import Faults, TcpFaultProxy
from mappers.sdk.testing.conformance import Subject

TIMEOUT_MS = 300


class ToyServer:
    """Units on one port; a unit that is not there does not answer."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, str]] = {"1": {"level": "12", "set-point": "40"}}
        self.port = 0
        self.watchers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = dict(self._tasks)
        for task, writer in tasks.items():
            writer.transport.abort()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            while line := await reader.readline():
                number, verb, unit, *rest = line.decode().split()
                cells = self.units.get(unit)
                if cells is None:
                    continue
                if verb == "watch":
                    self.watchers.add(writer)
                    for name, text in cells.items():
                        writer.write(f"* {name} {text}\n".encode())
                    continue
                if verb == "set":
                    cells[rest[0]] = rest[1]
                answer = f"= {cells[rest[0]]}" if verb == "get" else "ok"
                writer.write(f"{number} {answer}\n".encode())
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.watchers.discard(writer)
            del self._tasks[task]
            writer.transport.abort()

    def change(self, name: str, text: str) -> None:
        self.units["1"][name] = text
        for writer in self.watchers:
            writer.write(f"* {name} {text}\n".encode())


class ToyConfig(Struct, frozen=True):
    port: Annotated[int, Meta(ge=1, le=65535)]
    unit: str = "1"
    timeout: Annotated[int, Meta(ge=10, le=60_000)] = TIMEOUT_MS


class ToyVisitor(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1)]


class ToyLink:
    def __init__(
        self, id_: DeviceId, config: ToyConfig, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.id = id_
        self.config = config
        self.reader = reader
        self.writer = writer
        self.lock = asyncio.Lock()
        self.number = 0
        self.silent = 0

    async def read_many(self, properties: Sequence[Property[ToyVisitor]]) -> Mapping[str, ReadResult]:
        results: dict[str, ReadResult] = {}
        for p in properties:
            try:
                answer = await self.ask(f"get {self.config.unit} {p.visitor.name}")
                results[p.name] = self.value(p, answer)
            except DeviceUnreachable:
                raise
            except (DeviceError, ConversionError) as error:
                results[p.name] = error
        return results

    def value(self, p: Property[ToyVisitor], answer: str) -> Value:
        if not answer.startswith("= "):
            raise DeviceProtocolError(self.id, f"the answer {answer[:40]!r} makes no sense")
        return parse_value(answer[2:], p.model.type)

    async def write(self, property_: Property[ToyVisitor], value: Value) -> None:
        text = format_value(value, property_.model.type)
        answer = await self.ask(f"set {self.config.unit} {property_.visitor.name} {text}")
        if answer != "ok":
            raise DeviceProtocolError(self.id, f"the answer {answer[:40]!r} makes no sense")

    async def ask(self, request: str) -> str:
        async with self.lock:
            self.number += 1
            try:
                async with asyncio.timeout(self.config.timeout / 1000):
                    self.writer.write(f"{self.number} {request}\n".encode())
                    answer = await self.answer()
            except TimeoutError:
                self.silent += 1
                if self.silent >= 3:
                    raise DeviceUnreachable(self.id, "no reply to 3 requests in a row") from None
                raise DeviceTimeout(self.id, "no reply") from None
            except OSError as error:
                raise DeviceUnreachable(self.id, f"connection lost: {error}") from error
            except ValueError as error:
                raise DeviceProtocolError(self.id, f"garbage: {error}") from error
            self.silent = 0
            return answer

    async def answer(self) -> str:
        """The answer to the last request; late ones to earlier requests are passed over."""
        while True:
            line = await self.reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionResetError("closed")
            number, _, answer = line.decode("ascii", "replace").strip().partition(" ")
            if number == str(self.number):
                return answer


class ToyDriver(Driver[ToyConfig, ToyVisitor]):
    protocol = "toy"
    protocol_config = ToyConfig
    visitor_config = ToyVisitor
    link_type: type[ToyLink] = ToyLink

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        try:
            async with asyncio.timeout(config.timeout / 1000):
                reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
        except (OSError, TimeoutError) as error:
            raise DeviceUnreachable(device_id, f"cannot connect: {error}") from error
        try:
            yield self.link_type(device_id, config, reader, writer)
        finally:
            await self.close(writer)

    async def close(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()


class PushingLink(ToyLink):
    """Has the device tell of changes of `level`, over a connection of its own. The rest is read, which also shows
    whether the device is still there."""

    pushing: asyncio.Task[None] | None = None

    async def subscribe(self, properties: Sequence[Property[ToyVisitor]], push: Push) -> Sequence[str]:
        await self.end_push()
        by_cell = {p.visitor.name: p for p in properties if p.visitor.name == "level"}
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.config.port)
        except OSError as error:
            raise DeviceUnreachable(self.id, f"connection lost: {error}") from error
        writer.write(f"1 watch {self.config.unit}\n".encode())
        self.pushing = asyncio.create_task(self.listen(by_cell, reader, writer, push), name="toy push")
        return [p.name for p in by_cell.values()]

    async def listen(
        self,
        by_cell: Mapping[str, Property[ToyVisitor]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        push: Push,
    ) -> None:
        try:
            while line := await reader.readline():
                try:
                    star, cell, text = line.decode("ascii").split()
                    if star == "*" and (p := by_cell.get(cell)):
                        push({p.name: parse_value(text, p.model.type)})
                except (ValueError, ConversionError) as error:
                    garbage = DeviceProtocolError(self.id, f"garbage: {error}")
                    push({p.name: garbage for p in by_cell.values()})
        except OSError as error:
            lost = DeviceUnreachable(self.id, f"connection lost: {error}")
            push(dict.fromkeys([p.name for p in by_cell.values()], lost))
        else:
            lost = DeviceUnreachable(self.id, "connection lost")
            push(dict.fromkeys([p.name for p in by_cell.values()], lost))
        finally:
            writer.transport.abort()

    async def end_push(self) -> None:
        task, self.pushing = self.pushing, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


class PushingDriver(ToyDriver):
    link_type = PushingLink

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        async with super().connect(device_id, config) as link:
            try:
                yield link
            finally:
                if isinstance(link, PushingLink):
                    await link.end_push()


MODEL = DeviceModel(
    "lab",
    "toy",
    properties=(ModelProperty("level", "INT", "ReadOnly"), ModelProperty("set-point", "INT", "ReadWrite")),
)


class ToySubject(Subject):
    model = MODEL
    readable, values = "level", ("12", "34")
    writable, desired = "set-point", ("41", "42")
    reply_timeout_s = TIMEOUT_MS / 1000
    wrong_config: Mapping[str, Scalar] = {"port": 0, "timeout": "soon"}
    wrong_visitor: Mapping[str, Scalar] = {"name": ""}
    other_config: Mapping[str, Scalar] = {"timeout": TIMEOUT_MS + 50}
    other_visitor: Mapping[str, Scalar] = {"name": "set-point"}

    def __init__(self, driver: ToyDriver, server: ToyServer, port: int, faults: Faults) -> None:
        self.driver = driver
        self.faults = faults
        self.server = server
        self.device = Device(
            "lab",
            "toy-1",
            model="toy",
            protocol="toy",
            protocol_config={"port": port},
            properties=tuple(
                DeviceProperty(p.name, visitor=Visitor("toy", {"name": p.name})) for p in MODEL.properties
            ),
        )
        self.neighbour = msgspec.structs.replace(self.device, name="toy-2", protocol_config={"port": port, "unit": "2"})

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    async def set_value(self, property_name: str, text: str) -> None:
        self.server.change(property_name, text)

    async def get_value(self, property_name: str) -> str:
        return self.server.units["1"][property_name]


@asynccontextmanager
async def toy_subject(driver: ToyDriver) -> AsyncIterator[ToySubject]:
    """A toy device, a proxy before it, and the driver to be tested."""
    async with AsyncExitStack() as stack:
        server = ToyServer()
        await server.start()
        stack.push_async_callback(server.stop)
        proxy = await stack.enter_async_context(TcpFaultProxy("127.0.0.1", server.port))
        yield ToySubject(driver, server, proxy.port, proxy.faults)
