"""A cloud that confirms a device's reports as CloudCore does: once a second, when the device may be written again.

`python -m benchmarks.twin.paced CERTIFICATES PORT`, until it is killed; prints a line when a node connects.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cloudedge import Message
from cloudedge.connection import Connection
from cloudedge.resources import device_report
from tests.edgecore.peers import FakeCloud

PACE_S = 1.0


class _Paced(FakeCloud):
    def __init__(self, certificates: Path, port: int) -> None:
        super().__init__(certificates)
        self.port = port
        self.answers_membership = False
        self._confirmations: set[asyncio.Task[None]] = set()

    def _open(self, connection: Connection) -> None:
        super()._open(connection)
        print("connected", flush=True)

    async def _take(self, connection: Connection, message: Message) -> None:
        self.messages.clear()
        if device_report(message.route.resource) is None:
            return await super()._take(connection, message)
        task = asyncio.create_task(self._confirm_later(connection, message))
        self._confirmations.add(task)
        task.add_done_callback(self._confirmations.discard)
        return None

    async def _confirm_later(self, connection: Connection, message: Message) -> None:
        await asyncio.sleep(PACE_S)
        await super()._take(connection, message)


async def _serve(certificates: Path, port: int) -> None:
    await _Paced(certificates, port).start()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
