"""An edge node that comes, goes, and reports as many values as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from cloudedge import ConnectionLost, ConnectionRefused, Message, new_message, reply, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.message import now_ms
from cloudedge.resources import state_resource, twin_resource
from edgecore.devicetwin.messages import membership_request

__all__ = ["ChurnNode"]

KEEPALIVE_S: Final = 10.0
RETRY_S: Final = (0.1, 1.0)
LABELS: Final = {"node-role.kubernetes.io/agent": "", "node-role.kubernetes.io/edge": ""}


class ChurnNode:
    """`run` it in a task; cancelled, it is gone. What is not confirmed is reported again after a reconnect."""

    def __init__(self, name: str, url: str, certs: Path, rng: random.Random, *, says_what_it_has: bool) -> None:
        self.name = name
        self.connects = 0
        self.confirmed = 0
        self.stored: dict[str, tuple[str, str]] = {}
        """By resource path uid and version, which a node of ours says when it connects; one of upstream's does not."""
        self.values: dict[str, int] = {}
        """By device, what it reports or has reported last."""
        self._left: dict[str, int] = {}
        """By device, how many values are still to be confirmed, the one on its way included."""
        self._url = url
        self._rng = rng
        self._says_what_it_has = says_what_it_has
        self._has_lease = False
        self._context = tls.client_context(
            ca_file=certs / "ca.crt", cert_file=certs / f"{name}.crt", key_file=certs / f"{name}.key"
        )
        self._connection: Connection | None = None
        self._on_the_way: dict[str, str] = {}

    @property
    def devices(self) -> set[str]:
        """Those it has been sent."""
        return {path.rpartition("/")[2] for path in self.stored if path.split("/")[1] == "device"}

    @property
    def left(self) -> int:
        return sum(self._left.values())

    def report(self, devices: Iterable[str], values: int) -> None:
        """Have that many new values of each device reported, one after the other."""
        for device in devices:
            self._left[device] = self._left.get(device, 0) + values
            self.values[device] = self.values.get(device, 0) + 1
            self._send_value(device)

    def forget(self, device: str) -> None:
        """It is not this node's any more."""
        self._left.pop(device, None)
        self.values.pop(device, None)

    def beat(self) -> None:
        """Say how the node is, as an edge core does now and then."""
        condition = {"type": "Ready", "status": "True", "reason": "EdgeCoreReady", "lastHeartbeatTime": _second()}
        lease = {
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": f"{_second()[:-1]}.000000Z"},
        }
        patch = msgspec.json.encode({"status": {"conditions": [condition]}}).decode()
        self._ask("patch", f"null/nodepatch/{self.name}", patch)
        self._ask("update" if self._has_lease else "insert", f"kube-node-lease/lease/{self.name}", lease)
        self._has_lease = True

    def cut(self) -> None:
        """End the connection without a word."""
        if self._connection is not None:
            self._connection.abort()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(ConnectionRefused, ConnectionLost):
                connection = await connect(self._url, node=self.name, ssl_context=self._context, timeout_s=20.0)
                await self._session(connection)
            await asyncio.sleep(self._rng.uniform(*RETRY_S))

    async def _session(self, connection: Connection) -> None:
        self._connection = connection
        self._on_the_way.clear()
        self.connects += 1
        beating = asyncio.create_task(self._keep_alive())
        try:
            self._ask(
                "insert", f"null/node/{self.name}", {"metadata": {"name": self.name, "labels": LABELS}, "spec": {}}
            )
            self.beat()
            self._post(membership_request(self.name, self._inventory()))
            for device in self.devices:
                self._say_state(device)
            for device in list(self._left):
                self._send_value(device)
            while True:
                self._take(await connection.receive())
        finally:
            self._connection = None
            beating.cancel()
            connection.abort()

    def _inventory(self) -> dict[str, tuple[str, str]] | None:
        if not self._says_what_it_has:
            return None
        return {path: has for path, has in self.stored.items() if path.split("/")[1] in ("device", "devicemodel")}

    async def _keep_alive(self) -> None:
        while True:
            self._post(
                new_message(
                    source="websocket", group="resource", operation="keepalive", resource="node", content="ping"
                )
            )
            await asyncio.sleep(KEEPALIVE_S)

    def _take(self, message: Message) -> None:
        if message.header.parent_msg_id:
            device = self._on_the_way.pop(message.header.parent_msg_id, "")
            if device in self._left:
                self._confirm(device)
        elif message.route.group == "resource":
            self._store(message)
            self._post(reply(message, source="meta", group="twin"))

    def _confirm(self, device: str) -> None:
        self.confirmed += 1
        self._left[device] -= 1
        if self._left[device]:
            self.values[device] += 1
            self._send_value(device)
        else:
            del self._left[device]

    def _store(self, message: Message) -> None:
        path = message.route.resource
        if message.route.operation == "delete":
            self.stored.pop(path, None)
            return
        is_new = path not in self.stored
        self.stored[path] = (message.data()["metadata"]["uid"], message.header.resourceversion)
        if is_new and path.split("/")[1] == "device":
            self._say_state(path.rpartition("/")[2])

    def _say_state(self, device: str) -> None:
        content = {"event_id": "e", "timestamp": now_ms(), "device": {"name": device, "state": "online"}}
        resource = state_resource("default", device)
        self._post(new_message(source="twin", group="resource", operation="update", resource=resource, content=content))

    def _send_value(self, device: str) -> None:
        value = {"value": str(self.values[device]), "metadata": {"timestamp": now_ms()}}
        content = {
            "event_id": "e",
            "timestamp": now_ms(),
            "twin": {"level": {"actual": value, "metadata": {"type": "int"}}},
        }
        resource = twin_resource("default", device)
        sent = new_message(source="twin", group="resource", operation="update", resource=resource, content=content)
        if self._post(sent):
            self._on_the_way[sent.id] = device

    def _ask(self, operation: str, resource: str, content: Any) -> None:
        """A question whose answer does not matter here."""
        self._post(new_message(source="edged", group="meta", operation=operation, resource=resource, content=content))

    def _post(self, message: Message) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.send_now(message)
        except ConnectionLost:
            return False
        return True


def _second() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
