"""Clients of the internal broker that come twice, or no longer say anything: bytes on a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.edgecore.mqtt_world import app, world
from tests.edgecore.test_eventbus_internal import config, port_of


@pytest.mark.parametrize("clean", (True, False))
async def test_a_client_that_comes_again_takes_over(tmp_path: Path, clean: bool) -> None:
    """Before the broker has noticed that it was gone."""
    async with world(config(), tmp_path) as one:
        port = port_of(one)
        connect = b"\x10\x11\x00\x04MQTT\x04" + (b"\x02" if clean else b"\x00") + b"\x00\x00\x00\x05app-1"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(connect)
        assert (await reader.readexactly(4))[3] == 0
        async with app(port, "t", identifier="app-1", clean_session=clean) as local:
            async with asyncio.timeout(10):
                assert await reader.read() == b"", "the old connection is closed"
            await asyncio.sleep(0.1)
            for number in range(10):
                await local.publish("t", b"%d" % number, qos=number % 2)
            await local.hears("t", 10)
        writer.close()


async def test_a_client_that_falls_silent_is_cut_off(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(one))
        writer.write(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x01\x00\x03dog")
        async with asyncio.timeout(10):
            assert (await reader.readexactly(4))[3] == 0
            assert await reader.read() == b""
        writer.close()
        assert one.events._process is not None
        assert one.events._process.pid is not None
        broker = psutil.Process(one.events._process.pid)
        before = sum(broker.cpu_times()[:2])
        await asyncio.sleep(0.5)
        assert sum(broker.cpu_times()[:2]) - before < 0.25, "nothing is left that spins"
