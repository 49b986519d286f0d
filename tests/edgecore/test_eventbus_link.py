"""A connection to a broker that goes in an awkward moment."""

from __future__ import annotations

import asyncio
from typing import Any

from edgecore.eventbus.link import linked
from edgecore.eventbus.settings import BrokerTarget


async def test_a_broker_that_goes_while_we_say_good_bye() -> None:
    """The loop is asked to watch a socket, and comes to it when it is closed: nobody's error, and none in the log."""
    loop, errors = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x20\x02\x00\x00")  # CONNACK
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as broker:
        port = broker.sockets[0].getsockname()[1]
        target = BrokerTarget("external", f"tcp://127.0.0.1:{port}", "127.0.0.1", port, 0, False, "sub", "pub")
        async with linked(target, client_id="sub", keep_session=False) as link:
            link._paho.disconnect()
            link._paho._sock_close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert errors == []
