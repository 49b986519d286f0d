"""MQTT of QoS 0, where no message is acknowledged, against a broker that stops reading without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dmi.types import Device, DeviceProperty
from mappers.sdk.sinks import sink as sink_module
from mappers.sdk.sinks.kinds import mqtt
from tests.mappers.sink_world import device, plane, sample, until


class Broker:
    """Takes what is published. While `hears` is not set it reads nothing, and nobody's connection is closed."""

    def __init__(self) -> None:
        self.port = 0
        self.hears = asyncio.Event()
        self.hears.set()
        self.got: list[str] = []
        self.questions = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                await self.hears.wait()
                (first,) = await reader.readexactly(1)
                length = shift = 0
                while True:
                    (byte,) = await reader.readexactly(1)
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                packet = await reader.readexactly(length)
                await self.hears.wait()
                writer.write(self._answer(first, packet))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, first: int, packet: bytes) -> bytes:
        """MQTT 3.1.1, 2.2.1: the packet types."""
        match first >> 4:
            case 1:
                return b"\x20\x02\x00\x00"
            case 3:
                assert not first & 6, "QoS 0"
                self.got.append(packet[2 + int.from_bytes(packet[:2], "big") :].decode().rpartition(" ")[2])
            case 10:
                self.questions += 1
                return b"\xb0\x02" + packet[:2]
            case 12:
                return b"\xd0\x00"
        return b""

    def drop_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broker]:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.02, 0.1))
    monkeypatch.setattr(mqtt, "REQUEST_TIMEOUT_S", 1.0)
    broker = Broker()
    server = await asyncio.start_server(broker.talk, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    yield broker
    server.close()
    broker.hears.set()
    broker.drop_connections()
    await asyncio.sleep(0.01)


async def test_a_silent_cut_loses_nothing_that_nobody_acknowledges(broker: Broker, tmp_path: Path) -> None:
    async with plane(tmp_path / "data") as data:
        assert not data.declare(device({"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t"}}))
        data.put(sample(0))
        await until(lambda: data.stats()[0].sent == 1, "the first is confirmed")
        broker.hears.clear()
        for number in range(1, 101):
            data.put(sample(number))
        await until(lambda: not data.stats()[0].up, "it is noticed")
        assert data.stats()[0].sent == 1, "what the network took is not what the broker has"
        broker.drop_connections()
        broker.hears.set()
        await until(lambda: data.stats()[0].sent == 101, "it is sent again")
        assert set(broker.got) == set(map(str, range(101)))
        assert data.stats()[0].dropped == {}


async def test_one_question_serves_all_messages_under_way(broker: Broker, tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(16)]
    push = {"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t"}}
    async with plane(tmp_path / "data") as data:
        properties = tuple(DeviceProperty(name, push_method=push) for name in names)
        data.declare(Device("plant", "meter-1", properties=properties))
        for number in range(10):
            for name in names:
                data.put(sample(number, prop=name))
        await until(lambda: data.stats()[0].sent == 160, "all are confirmed")
    assert len(broker.got) == 160
    assert broker.questions < 80


async def test_a_connection_that_was_closed_while_idle_is_no_reason_to_use_the_disk(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with plane(tmp_path / "data") as data:
        data.declare(device({"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t"}}))
        data.put(sample(0))
        await until(lambda: data.stats()[0].sent == 1, "the first is confirmed")
        broker.drop_connections()
        await asyncio.sleep(0.1)
        data.put(sample(1))
        await until(lambda: data.stats()[0].sent == 2, "it is sent on a new connection")
        assert "is away" not in caplog.text
        assert not (tmp_path / "data").exists()
