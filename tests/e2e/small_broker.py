"""The MQTT broker that edge core brings along, as a process that tests start and kill: `python -m
tests.e2e.small_broker PORT`.
"""

import asyncio
import sys

from edgecore.eventbus.brokerwire import BrokerSettings
from edgecore.eventbus.localbroker import LocalBroker


async def main(port: int) -> None:
    await LocalBroker(BrokerSettings(host="127.0.0.1", port=port, queue_size=100)).start()
    await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
