"""Clients and nodes that want to keep the process busy, or its places taken."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import Raw

from cloudcore.cloudhub import session as session_module
from cloudcore.cloudhub.session import Session
from cloudcore.cloudhub.upgrade import wrong_with
from cloudcore.devicecontroller.reports import MAX_PROPERTIES, read_twin_report
from cloudcore.edgecontroller import lanes
from cloudcore.edgecontroller.lanes import LARGE, Lanes
from cloudcore.edgecontroller.requests import MAX_BYTES, MAX_MEMBERS, _members
from cloudcore.joining.service import JoinService
from cloudedge import MalformedMessage, Message, certificates, decode, encode, new_message
from cloudedge.connection import Connection
from cloudedge.message import MAX_ANY_CASE_BYTES
from dmi.web import server as server_module
from dmi.web.server import HttpServer
from tests.cloudcore.join_world import Cloud, joining_cloud
from tests.cloudcore.support import Kubernetes, until


def message(content: object, resource: str = "a/b/c") -> Message:
    return new_message(source="twin", group="resource", operation="update", resource=resource, content=content)


def test_a_large_message_is_not_looked_through_for_other_letters() -> None:
    """Its members would be taken apart twice: 16 MiB of them kept everybody waiting for 5 s."""
    small = encode(message("x")).replace(b'"header"', b'"Header"')
    assert decode(small).route.resource == "a/b/c"
    large = encode(message("x" * MAX_ANY_CASE_BYTES))
    assert decode(large).route.resource == "a/b/c"
    with pytest.raises(MalformedMessage):
        decode(large.replace(b'"header"', b'"Header"'))
    assert decode(large.replace(b'"operation":"update",', b"")).route.operation == ""


def test_a_resource_without_end_is_not_taken_apart() -> None:
    class Whole(str):
        __slots__ = ()

        def split(self, *_: object, **__: object) -> list[str]:
            raise AssertionError

    assert wrong_with(message(1, Whole("/" * 2000)), "edge-1") == "resource"


def test_requests_are_bounded_in_members() -> None:
    image = b'{"names":["registry.example/app@sha256:%064d","registry.example/app:1"],"sizeBytes":123456789}'
    real = b",".join(image % n for n in range(9000))
    assert MAX_BYTES * 0.85 < len(real) < MAX_BYTES
    assert _members(message(Raw(b"[" + real + b"]"))) <= MAX_MEMBERS
    for piece in (b"7", b"[]", b"{}", b"0.1", b'"a"'):
        many = Raw(b"[" + b",".join([piece] * (MAX_MEMBERS + 2)) + b"]")
        assert _members(message(many)) > MAX_MEMBERS
        assert _members(message(bytes(many).decode())) > MAX_MEMBERS, "as JSON text"


def test_reports_are_bounded_in_members() -> None:
    few = Raw(b'{"twin":{"a":{"actual":{"value":"1"},"metadata":{"x":[' + b"1," * 21 * MAX_PROPERTIES + b"1]}}}}")
    with pytest.raises(MalformedMessage, match="properties"):
        read_twin_report(message(few))


async def test_a_node_with_large_requests_has_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "RATE", LARGE * 10)
    served: list[tuple[str, float]] = []

    async def serve(request: tuple[str, int]) -> None:
        served.append((request[0], time.monotonic()))

    waiting: Lanes[tuple[str, int]] = Lanes(serve, at_once=1, size_of=lambda request: request[1])
    working = asyncio.create_task(waiting.work())
    for _ in range(3):
        waiting.add("evil", ("evil", LARGE + 1))
    for _ in range(20):
        waiting.add("good", ("good", LARGE))
    await until(lambda: len(served) == 23)
    assert [node for node, _ in served].index("evil", 1) >= 21, "others are served meanwhile"
    at = [when for node, when in served if node == "evil"]
    assert min(after - before for before, after in itertools.pairwise(at)) > 0.09
    await until(lambda: not waiting.running)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


class Full(Connection):
    """Has always one more message."""

    async def receive(self) -> Message:
        return message("x")


async def test_messages_that_take_their_time_leave_time_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LONG_S", 0.01)
    taken = 0

    def take(_: Session, __: Message) -> None:
        nonlocal taken
        taken += 1
        until_s = time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass

    session = Session(Full("evil"), keepalive_s=30)
    began = time.monotonic()
    running = asyncio.create_task(session.run(take))
    await until(lambda: taken == 5)
    assert time.monotonic() - began > 4 * (0.02 + 0.08)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def joining(kube: Kubernetes, tmp_path: Path) -> AsyncIterator[Cloud]:
    async with joining_cloud(kube, tmp_path) as cloud:
        yield cloud


def server_of(cloud: Cloud) -> HttpServer:
    assert isinstance(cloud.joining.service, JoinService)
    return cloud.joining.service._server


def idle(port: int, address: str, number: int) -> list[socket.socket]:
    """Clients that connect and say nothing."""
    return [socket.create_connection(("127.0.0.1", port), source_address=(address, 0)) for _ in range(number)]


async def test_a_few_addresses_do_not_keep_all_others_out(joining: Cloud) -> None:
    server = server_of(joining)
    server._limit, server._per_address, server._free = 4, 3, asyncio.Semaphore(4)
    idlers = idle(joining.port, "127.0.0.2", 3) + idle(joining.port, "127.0.0.3", 3)
    await until(lambda: server.open_connections == 4 and server.turned_away)
    assert (await joining.join(headers=await joining.bearer()))[0] == 200
    for each in idlers:
        each.close()
    await until(lambda: not server.open_connections and not server._addresses)


async def test_many_addresses_do_not_keep_all_others_out(joining: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(joining)
    server._limit, server._free = 3, asyncio.Semaphore(4)
    idlers = [client for n in range(2, 5) for client in idle(joining.port, f"127.0.0.{n}", 1)]
    await until(lambda: server.open_connections == 3)
    monkeypatch.setattr(server_module, "SLOW_S", 0.0)
    assert (await joining.join(headers=await joining.bearer()))[0] == 200
    for each in idlers:
        each.close()
    await until(lambda: not server.open_connections and not server._addresses)


async def test_slow_clients_behind_one_address_do_not_keep_others_of_it_out(
    joining: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, headers = server_of(joining), await joining.bearer()
    monkeypatch.setattr(server, "_per_address", 3)
    idlers = idle(joining.port, "127.0.0.1", 3)
    await until(lambda: server.open_connections == 3)
    with pytest.raises(OSError):  # noqa: PT011 - reset, or the end of TLS
        await joining.join(headers=headers)
    monkeypatch.setattr(server_module, "SLOW_S", 0.0)
    assert (await joining.join(headers=headers))[0] == 200
    for each in idlers:
        each.close()
    await until(lambda: not server.open_connections and not server._addresses)


async def test_one_certificate_under_many_names_is_one_line(joining: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    evil = certificates.sign_node(joining.ca, "evil")
    for number in range(5):
        assert (await joining.join(f"edge-{number}", pair=evil))[0] == 401
    lines = [record.getMessage() for record in caplog.records if record.name == "cloudcore.audit"]
    assert len(lines) == 1
    assert '"node":"evil"' in lines[0]
    assert "system:node:edge-0" in lines[0]
