"""HTTP itself, over raw sockets: what is malformed, too large or too slow costs its sender the connection, no more."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.web.http import MAX_BODY, MAX_HEAD, Limits
from dmi.web.server import MAX_CONNECTIONS
from tests.mappers.web_world import MemoryMapper, raw, served, until

PING = b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
HURRIED = Limits(idle_s=0.2, read_s=0.2, answer_s=0.2, write_s=0.2, linger_s=0.2)


def statuses(answer: bytes) -> list[int]:
    """Of all the responses in what came back."""
    return [int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    (
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"HELLO\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /api/v1/ping HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /api/v1/device/a/b/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ),
)
async def test_malformed_request_is_answered_and_the_server_goes_on(request_bytes: bytes, status: int) -> None:
    async with served(MemoryMapper()) as server:
        answer = await raw(server.port, request_bytes)
        assert statuses(answer) == [status], answer
        assert statuses(await raw(server.port, PING)) == [200]


@pytest.mark.parametrize(
    "target", (b"/api/v1/ping", b"http://127.0.0.1/api/v1/ping", b"HTTPS://localhost:1/api/v1/ping?x")
)
async def test_target_may_be_a_whole_url(target: bytes) -> None:
    async with served(MemoryMapper()) as server:
        assert statuses(await raw(server.port, PING.replace(b"/api/v1/ping", target))) == [200]


async def test_http_1_0_is_answered_and_closed() -> None:
    async with served(MemoryMapper()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(30):
            answer = await reader.read()  # ends although this side stays open
        writer.close()
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"\n")


async def test_huge_headers_are_refused_unread() -> None:
    huge = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (4 * MAX_HEAD)
    async with served(MemoryMapper()) as server:
        assert statuses(await raw(server.port, huge)) == [431]


@pytest.mark.parametrize("declared", (True, False))
async def test_huge_body_is_refused(declared: bool) -> None:
    head = b"PUT /api/v1/device/plant/pump-1/label HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = (
        4_000_000 if declared else MAX_BODY + 1
    )  # more than fits into socket buffers, and it is answered all the same
    if declared:
        request = head + f"Content-Length: {size}\r\n\r\n".encode() + b"x" * size
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + f"{size:x}\r\n".encode() + b"x" * size
    mapper = MemoryMapper()
    async with served(mapper) as server:
        assert statuses(await raw(server.port, request)) == [413]
        assert mapper.pump.calls == []


async def test_huge_body_is_refused_before_it_is_sent() -> None:
    head = b"PUT /api/v1/device/plant/pump-1/label HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    async with served(MemoryMapper()) as server:
        assert statuses(await raw(server.port, head + b"Content-Length: 1000000000\r\n\r\n")) == [413]


async def test_body_in_chunks_is_taken() -> None:
    head = b"PUT /api/v1/device/plant/pump-1/label HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    mapper = MemoryMapper()
    async with served(mapper) as server:
        body = b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"value":\r\n4\r\n"x"}\r\n0\r\n\r\n'
        assert statuses(await raw(server.port, head + body)) == [200]
        assert mapper.pump.values["label"] == "x"


async def test_client_that_asks_first_is_told_to_go_on() -> None:
    head = b"PUT /api/v1/device/plant/pump-1/label HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with served(MemoryMapper()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + b"Content-Length: 13\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(30):
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b'{"value":"y"}')
            assert b" 200 " in await reader.readuntil(b"\r\n")
        writer.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    second = PING.replace(b"/api/v1/ping", b"/nowhere")
    async with served(MemoryMapper()) as server:
        assert statuses(await raw(server.port, PING + second + PING)) == [200, 404, 200]


async def test_connection_is_kept_for_the_next_request() -> None:
    async with served(MemoryMapper()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(30):
            for _ in range(3):
                writer.write(PING)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["statusCode"] == 200
            writer.write(PING.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert b"connection: close" in (await reader.read()).lower()
        writer.close()


async def test_idle_connection_is_closed_without_a_word() -> None:
    async with served(MemoryMapper(), limits=HURRIED) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_client_that_drips_its_request_is_cut_off_at_the_deadline() -> None:
    async with served(MemoryMapper(), limits=HURRIED) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\n")
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(30):
            while not closed.done():  # a byte now and then would keep a deadline per read alive for ever
                writer.write(b"X: y\r\n")
                await asyncio.wait([closed], timeout=0.05)
        assert closed.exception() is not None or statuses(closed.result()) == [408]
        writer.close()


async def test_device_that_takes_too_long_is_a_gateway_timeout() -> None:
    mapper = MemoryMapper()
    async with served(mapper, limits=HURRIED) as server:
        mapper.pump.gate.clear()
        answer = await raw(server.port, PING.replace(b"/api/v1/ping", b"/api/v1/device/plant/pump-1/speed"))
    assert statuses(answer) == [504]


async def test_client_that_does_not_take_its_answer_is_cut_off() -> None:
    mapper = MemoryMapper()
    mapper.pump.values["label"] = "x" * 30_000_000
    async with served(mapper, limits=HURRIED) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(PING.replace(b"/api/v1/ping", b"/api/v1/device/plant/pump-1/label"))
        await until(lambda: bool(server.responses[200]))
        await until(lambda: not server.open_connections)
        writer.close()


async def test_clients_beyond_the_limit_wait_until_another_leaves() -> None:
    async with served(MemoryMapper(), limits=Limits(idle_s=30.0)) as server:
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
        await until(lambda: server.open_connections == MAX_CONNECTIONS)
        waiting = asyncio.create_task(raw(server.port, PING))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        idle[0][1].close()
        assert statuses(await waiting) == [200]
        for _, writer in idle:
            writer.close()


async def test_client_that_leaves_in_the_middle_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    mapper = MemoryMapper()
    async with served(mapper) as server:
        mapper.pump.gate.clear()
        for request in (b"GET /api", PING.replace(b"/api/v1/ping", b"/api/v1/device/plant/pump-1/speed")):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            await writer.drain()
            writer.transport.abort()
        await until(lambda: bool(mapper.pump.calls))
        mapper.pump.gate.set()
        assert statuses(await raw(server.port, PING)) == [200]
        await until(lambda: not server.open_connections)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_end_lets_the_answer_under_way_out_and_no_new_request_in() -> None:
    mapper = MemoryMapper()
    async with served(mapper) as server:
        mapper.pump.gate.clear()
        port = server.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PING.replace(b"/api/v1/ping", b"/api/v1/device/plant/pump-1/speed"))
        await until(lambda: bool(mapper.pump.calls))
        asyncio.get_running_loop().call_later(0.05, mapper.pump.gate.set)
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert statuses(answer) == [200]
    assert b"connection: close" in answer.lower()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    idle.close()


async def test_end_does_not_wait_for_a_device_that_hangs() -> None:
    mapper = MemoryMapper()
    async with asyncio.timeout(30):
        async with served(mapper) as server:
            mapper.pump.gate.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(PING.replace(b"/api/v1/ping", b"/api/v1/device/plant/pump-1/speed"))
            await until(lambda: bool(mapper.pump.calls))
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


pieces = st.sampled_from(
    [b"GET ", b"/api/v1/ping", b" HTTP/1.1\r\n", b"Host: localhost", b"\r\n", b"\r\n\r\n", b"Content-Length: 3"]
)


@given(st.lists(st.binary(max_size=60) | pieces, max_size=12))
async def test_no_bytes_take_the_server_down(parts: list[bytes]) -> None:
    async with served(MemoryMapper(), limits=HURRIED) as server:
        answer = await raw(server.port, b"".join(parts))
        assert 500 not in statuses(answer)
        assert statuses(await raw(server.port, PING)) == [200]
