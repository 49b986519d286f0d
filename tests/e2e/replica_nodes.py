"""Nodes that report through whichever cloud core they reach, and keep their last values until these are confirmed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cloudedge import ConnectionLost, ConnectionRefused, Message, new_message, reply, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.message import now_ms
from cloudedge.resources import state_resource, twin_resource

__all__ = ["Node", "Nodes", "until"]

REPORT_S: Final = 0.2
_RETRY_S: Final = (0.3, 1.0)
_KEEPALIVE_S: Final = 5.0


async def until(condition: Callable[[], object], *, within_s: float, what: str | Callable[[], str]) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < within_s, f"not within {within_s:g} s: {what() if callable(what) else what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


class Node:
    """An edge core reduced to its promises: what is not confirmed is said again, and objects are acknowledged."""

    def __init__(self, name: str, devices: Sequence[str], url: str, certs: Path, rng: random.Random) -> None:
        self.name = name
        self.devices = devices
        self.connects = 0
        self.confirmed: dict[str, tuple[int, float]] = {}
        """By device: the newest value that the cloud has confirmed, and when (monotonic)."""
        self.last: dict[str, int] = dict.fromkeys(devices, 0)
        self.desired: dict[str, list[tuple[int, str]]] = {}
        """By device: resource version and desired value as they came."""
        self.reporting = True
        self.present = asyncio.Event()
        """Whether it dials when it is not connected."""
        self.present.set()
        self._url = url
        self._rng = rng
        self._context = tls.client_context(
            ca_file=certs / "ca.crt", cert_file=certs / f"{name}.crt", key_file=certs / f"{name}.key"
        )
        self._on_the_way: dict[str, tuple[str, int]] = {}

    def settled(self) -> bool:
        return all(self.confirmed.get(d, (0, 0.0))[0] == self.last[d] for d in self.devices)

    async def run(self) -> None:
        while True:
            await self.present.wait()
            try:
                connection = await connect(self._url, node=self.name, ssl_context=self._context, timeout_s=5.0)
                self.connects += 1
                await self._session(connection)
            except* (ConnectionRefused, ConnectionLost):
                pass
            await asyncio.sleep(self._rng.uniform(*_RETRY_S))

    async def _session(self, connection: Connection) -> None:
        self._on_the_way.clear()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(connection))
                group.create_task(self._report(connection))
                group.create_task(self._keep_alive(connection))
        finally:
            connection.abort()

    async def _keep_alive(self, connection: Connection) -> None:
        while True:
            await self._send(connection, source="websocket", operation="keepalive", resource="node", content="ping")
            await asyncio.sleep(_KEEPALIVE_S)

    async def _report(self, connection: Connection) -> None:
        text = f'{{"event_type":"group_membership_event","event_id":"e","group_id":"{self.name}","operation":"detail"}}'
        await self._send(connection, source="twin", operation="get", resource="membership/detail", content=text)
        for device in self.devices:
            content: Any = {"event_id": "e", "timestamp": now_ms(), "device": {"name": device, "state": "online"}}
            resource = state_resource("default", device)
            await self._send(connection, source="twin", operation="update", resource=resource, content=content)
        while True:
            busy = {device for device, _ in self._on_the_way.values()}
            for device in self.devices:
                if self.reporting:
                    self.last[device] += 1
                value = self.last[device]
                if device in busy or self.confirmed.get(device, (-1, 0.0))[0] == value:
                    continue
                twin = {
                    "actual": {"value": str(value), "metadata": {"timestamp": now_ms()}},
                    "optional": True,
                    "metadata": {"type": "int"},
                }
                content = {"event_id": "e", "timestamp": now_ms(), "twin": {"level": twin}}
                resource = twin_resource("default", device)
                sent = await self._send(
                    connection, source="twin", operation="update", resource=resource, content=content
                )
                self._on_the_way[sent.id] = (device, value)
            await asyncio.sleep(REPORT_S)

    async def _receive(self, connection: Connection) -> None:
        while True:
            message = await connection.receive()
            if message.header.parent_msg_id:
                if (sent := self._on_the_way.pop(message.header.parent_msg_id, None)) is not None:
                    self.confirmed[sent[0]] = (sent[1], time.monotonic())
            elif message.route.group == "resource":
                self._note(message)
                await connection.send(reply(message, source="meta", group="twin"))

    def _note(self, message: Message) -> None:
        parts = message.route.resource.split("/")
        if parts[-2:-1] != ["device"] or message.route.operation == "delete":
            return
        obj = message.data()
        for item in obj["spec"].get("properties", ()):
            if "desired" in item:
                told = (int(obj["metadata"]["resourceVersion"]), item["desired"]["value"])
                self.desired.setdefault(parts[-1], []).append(told)

    @staticmethod
    async def _send(connection: Connection, **route: Any) -> Message:
        message = new_message(group="resource", **route)
        await connection.send(message)
        return message


class Nodes:
    """All of them, while the block runs."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.all = list(nodes)

    async def served_since(self, moment: float, *, within_s: float) -> float:
        """Seconds after `moment` (monotonic) until each node's every device has a newly confirmed value."""

        def slow() -> list[str]:
            return [d for n in self.all for d in n.devices if n.confirmed.get(d, (0, 0.0))[1] <= moment]

        await until(lambda: not slow(), within_s=within_s, what=lambda: f"served again: {slow()}")
        return max(n.confirmed[d][1] for n in self.all for d in n.devices) - moment
