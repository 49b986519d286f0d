"""The process of the internal broker: `python -m edgecore.eventbus.broker`, started by edge core and gone with it.

Settings come as one line on standard input, which then stays open; its end means that edge core is gone. The answer is
one line on standard output: the port, or why there is none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from typing import Final

import msgspec

from edgecore.eventbus.brokerwire import BrokerAnswer, BrokerSettings
from edgecore.logs import set_up_logs

__all__: list[str] = []

_FAILED: Final = 3


def _main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:
        return
    settings = msgspec.json.decode(line, type=BrokerSettings)
    set_up_logs(logging.DEBUG if settings.verbose else logging.INFO)
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # of each client that goes; ours says what matters
    # A thread, so that nothing the broker does can keep it from ending.
    threading.Thread(target=_end_with_edgecore, name="end", daemon=True).start()
    asyncio.run(_serve(settings))


async def _serve(settings: BrokerSettings) -> None:
    try:
        from amqtt.errors import BrokerError

        from edgecore.eventbus.localbroker import LocalBroker
    except ModuleNotFoundError as missing:
        _answer(BrokerAnswer(problem=f"{missing.name} is not installed: pip install 'kubetwin[eventbus]'"))
        sys.exit(_FAILED)
    broker = LocalBroker(settings)
    try:
        await broker.start()
    except (BrokerError, OSError) as error:
        _answer(BrokerAnswer(problem=str(error.__cause__ or error)))
        sys.exit(_FAILED)
    _answer(BrokerAnswer(port=broker.port))
    await asyncio.get_running_loop().create_future()


def _answer(answer: BrokerAnswer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_edgecore() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    _main()
