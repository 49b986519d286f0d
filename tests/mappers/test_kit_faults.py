"""What the test kit can do to a line: proxies that spoil what passes, and a driver around a driver that does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import DeviceTimeout, DeviceUnreachable
from mappers.sdk.declaration import declare
from mappers.sdk.testing import (
    FaultyDriver,
    PtyFaultProxy,
    TcpFaultProxy,
    UdpFaultProxy,
    eventually,
    no_leaks,
    virtual_time,
)
from tests.mappers.virtual_world import DEVICE, ID, MODEL


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for _ in range(5):  # the echoes see that their connections are gone
        await asyncio.sleep(0.01)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float = 5.0) -> bytes:
    writer.write(b"0123456789")
    async with asyncio.timeout(timeout_s):
        return await reader.read(1000)


async def refused(port: int) -> bool:
    """At the connect, or at the first byte."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return await ask(reader, writer) == b""
    except OSError:
        return True


async def test_a_tcp_proxy_spoils_what_passes(echo_port: int) -> None:
    async with no_leaks(), TcpFaultProxy("127.0.0.1", echo_port) as proxy:
        faults = proxy.faults
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ask(reader, writer) == b"0123456789"
        assert (proxy.requests_bytes, proxy.reply_bytes, proxy.connections) == (10, 10, 1)
        faults.corrupt = True
        spoilt = await ask(reader, writer)
        assert sum((a ^ b).bit_count() for a, b in zip(spoilt, b"0123456789", strict=True)) == 1
        faults.clear()
        faults.garbage = True
        garbage = await ask(reader, writer)
        assert len(garbage) == 10
        assert garbage != b"0123456789"
        faults.clear()
        faults.truncate = True
        assert await ask(reader, writer) == b"01234"
        for name in ("drop", "drop_requests", "silent"):
            faults.clear()
            setattr(faults, name, True)
            with pytest.raises(TimeoutError):
                await ask(reader, writer, 0.1)
            _, other = await asyncio.open_connection("127.0.0.1", proxy.port)  # taken, and never answered
            other.transport.abort()
        faults.clear()
        faults.delay_s = 0.2
        writer.write(b"on the way")
        await eventually(lambda: proxy.requests_bytes == 80)
        faults.silent = True  # also what is on its way by then
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1000)
        faults.clear()
        for name, amount in (("delay_s", 0.1), ("bytes_per_s", 100.0)):
            setattr(faults, name, amount)
            began = asyncio.get_running_loop().time()
            assert await ask(reader, writer) == b"0123456789"
            assert asyncio.get_running_loop().time() - began >= 0.099
            faults.clear()
        faults.refuse = True
        assert await ask(reader, writer) == b"0123456789"  # who is in stays in
        assert await refused(proxy.port)
        faults.clear()
        await proxy.cut()
        with pytest.raises(OSError):  # noqa: PT011  # reset, or a broken pipe
            await ask(reader, writer)
        assert proxy.open_connections == 0
        writer.transport.abort()


async def test_a_udp_proxy_spoils_what_passes() -> None:
    loop = asyncio.get_running_loop()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: object) -> None:
            self.transport.sendto(data, addr)  # type: ignore[attr-defined]  # a datagram transport

    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = echo.get_extra_info("sockname")[1]
    async with UdpFaultProxy("127.0.0.1", port) as proxy:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", proxy.port))
            await loop.sock_sendall(client, b"0123456789")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"0123456789"
            proxy.faults.truncate = True
            await loop.sock_sendall(client, b"0123456789")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"01234"
            proxy.faults.silent = True
            await loop.sock_sendall(client, b"0123456789")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(client, 100), 0.1)
    echo.close()


async def test_a_serial_proxy_spoils_what_passes() -> None:
    async with no_leaks(), PtyFaultProxy() as proxy:
        driver = os.open(proxy.driver_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        device = os.open(proxy.device_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

        async def received(fd: int, count: int) -> bytes:
            data = b""
            async with asyncio.timeout(5):
                while len(data) < count:
                    try:
                        data += os.read(fd, 100)
                    except BlockingIOError:
                        await asyncio.sleep(0.005)
            return data

        try:
            os.write(driver, b"\x01\x03\r\n\x00")
            assert await received(device, 5) == b"\x01\x03\r\n\x00"
            os.write(device, b"0123456789")
            assert await received(driver, 10) == b"0123456789"
            proxy.faults.garbage = True
            os.write(device, b"0123456789")
            assert await received(driver, 10) != b"0123456789"
            proxy.faults.clear()
            proxy.faults.drop_requests = True
            os.write(driver, b"lost")
            await eventually(lambda: proxy.requests_bytes == 9)
            with pytest.raises(BlockingIOError):
                os.read(device, 100)
        finally:
            os.close(driver)
            os.close(device)


@virtual_time
async def test_a_faulty_driver_is_a_bad_line() -> None:
    driver = FaultyDriver(VirtualDriver(), timeout_s=2.0)
    declared = declare(driver, DEVICE, MODEL)
    properties = tuple(declared.properties.values())
    loop = asyncio.get_running_loop()
    async with driver.connect(ID, declared.config) as link:
        assert await link.read_many(properties) == {"level": 5.0, "set-point": 0}
        driver.faults.delay_s = 1.0
        began = loop.time()
        await link.read_many(properties)
        assert loop.time() - began == pytest.approx(1.0, abs=0.01)
        driver.faults.clear()
        driver.faults.drop = True
        with pytest.raises(DeviceTimeout):
            await link.write(properties[1], 9)
        driver.faults.clear()
        assert (await link.read_many(properties))["set-point"] == 9  # the request got through, its reply did not
        driver.faults.refuse = True
        with pytest.raises(DeviceUnreachable):
            async with driver.connect(ID, declared.config):
                pass
        driver.hang = True
        waiting = asyncio.create_task(link.read_many(properties))
        await asyncio.sleep(1000)
        assert not waiting.done()
        driver.cut()
        with pytest.raises(DeviceUnreachable):
            await waiting
