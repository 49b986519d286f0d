"""Several cloud cores behind one address, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import yaml

from cloudcore import crds
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Informer, Key, Kind, KubeClient, KubeError, Object
from cloudedge.certificates import mint
from cloudedge.loop_errors import LoopErrors
from tests.e2e.replica_nodes import Node, Nodes

__all__ = ["Balancer", "ReplicaSet", "device_object", "free_ports", "replica_set"]

CRDS: Final = Kind(
    group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions", kind="CustomResourceDefinition"
)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all at once, so that they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Balancer:
    """One address for all replicas: each connection goes to the next that takes it, as bytes."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        self._ports = list(ports)
        self._next = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: dict[asyncio.StreamWriter, int] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def drop(self, port: int) -> None:
        """Cut what goes to a replica, as a balancer does with one that fails its checks; it stays half-open there."""
        for writer, to in list(self._writers.items()):
            if to == port:
                writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            for _ in self._ports:
                self._next = (self._next + 1) % len(self._ports)
                port = self._ports[self._next]
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(1.0):
                        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                    self._writers[writer] = port
                    both = [self._pump(reader, up_writer), self._pump(up_reader, writer)]
                    _, rest = await asyncio.wait(
                        [asyncio.create_task(one) for one in both], return_when=asyncio.FIRST_COMPLETED
                    )
                    for one in rest:
                        one.cancel()
                    up_writer.transport.abort()
                    return
        finally:
            self._writers.pop(writer, None)
            writer.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()


class ReplicaSet:
    """Made by `replica_set`."""

    def __init__(self, directory: Path, kubeconfig: Path, hub_ports: Sequence[int]) -> None:
        self.directory = directory
        self.kubeconfig = kubeconfig
        self.ports = dict(zip((f"replica-{n}" for n in range(len(hub_ports))), hub_ports, strict=True))
        self.balancer = Balancer(hub_ports)
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start_api(self) -> None:
        data = self.directory / "api"
        await self._start(
            "apiserver", "-m", "kubetwin", "apiserver", "--kubeconfig", str(self.kubeconfig), "--data", str(data)
        )

    async def start(self, replica: str) -> None:
        certs = self.directory / "certs"
        config = {
            "apiVersion": "cloudcore.config.kubeedge.io/v1alpha1",
            "kind": "CloudCore",
            "commonConfig": {"monitorServer": {"bindAddress": ""}},
            "kubeAPIConfig": {"kubeConfig": str(self.kubeconfig)},
            "modules": {
                "cloudHub": {
                    "replica": replica,
                    "advertiseAddress": ["127.0.0.1"],
                    "tlsCAFile": str(certs / "ca.crt"),
                    "tlsCAKeyFile": str(certs / "ca.key"),
                    "tlsCertFile": str(certs / "server.crt"),
                    "tlsPrivateKeyFile": str(certs / "server.key"),
                    "https": {"enable": False},
                    "websocket": {"enable": True, "address": "127.0.0.1", "port": self.ports[replica]},
                }
            },
        }
        file = self.directory / f"{replica}.yaml"
        file.write_text(yaml.safe_dump(config))
        await self._start(replica, "-m", "cloudcore", "--config", str(file))

    async def listens(self, name: str) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.ports[name])
                    writer.transport.abort()
                    return
                assert self._running[name].returncode is None, self.log(name)
                await asyncio.sleep(0.05)

    async def kill(self, name: str) -> float:
        """Monotonic time when it was gone."""
        process = self._running.pop(name)
        assert process.returncode is None, f"{name} had ended by itself: {self.log(name)}"
        process.kill()
        at = time.monotonic()
        await process.wait()
        return at

    async def end(self, name: str) -> int:
        """Ask it to stop; its exit code."""
        process = self._running.pop(name)
        process.terminate()
        async with asyncio.timeout(20):
            return await process.wait()

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def pause(self, name: str) -> None:
        os.kill(self._running[name].pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        os.kill(self._running[name].pid, signal.SIGCONT)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-4000:]

    async def stop(self) -> None:
        for name, process in self._running.items():
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()
            assert "Traceback" not in self.log(name), self.log(name)
        await self.balancer.stop()

    @contextlib.asynccontextmanager
    async def nodes(self, names: Sequence[str], devices: int, *, seed: int = 1) -> AsyncIterator[Nodes]:
        rng = random.Random(seed)
        url = f"wss://127.0.0.1:{self.balancer.port}"
        certs = self.directory / "certs"
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        nodes = [Node(n, [device_name(n, d) for d in range(devices)], url, certs, rng) for n in names]
        tasks = [asyncio.create_task(node.run(), name=node.name) for node in nodes]
        try:
            yield Nodes(nodes)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._running[name] = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )


class Watched:
    """DeviceStatuses as a reader sees them: the newest, and every state there was."""

    def __init__(self, client: KubeClient) -> None:
        self.informer = Informer(client, STATUSES)
        self.states: dict[str, list[str]] = {}
        self.values: dict[str, list[int]] = {}
        self.informer.subscribe(self._note)

    def _note(self, key: Key, _old: Object | None, new: Object | None) -> None:
        status = (new or {}).get("status") or {}
        states = self.states.setdefault(key.name, [])
        if not states or states[-1] != status.get("state"):
            states.append(str(status.get("state")))
        for twin in status.get("twins", ()):
            values = self.values.setdefault(key.name, [])
            value = int(twin["reported"]["value"] or 0)
            if not values or values[-1] != value:
                values.append(value)


def device_name(node: str, number: int) -> str:
    return f"{node}-{number}"


async def declare(client: KubeClient, nodes: Sequence[str], devices: int) -> None:
    for definition in crds.load():
        await client.create(CRDS, definition)
    model = {
        "apiVersion": MODELS.api_version,
        "kind": "DeviceModel",
        "metadata": {"name": "tank", "namespace": "default"},
        "spec": {"protocol": "modbus", "properties": [{"name": "level", "type": "INT", "accessMode": "ReadWrite"}]},
    }
    await client.create(MODELS, model)
    for node in nodes:
        for number in range(devices):
            await client.create(DEVICES, device_object(node, device_name(node, number)))


def device_object(node: str, name: str) -> Object:
    """One of the model that `declare` declares."""
    spec = {
        "deviceModelRef": {"name": "tank"},
        "nodeName": node,
        "protocol": {"protocolName": "modbus", "configData": {}},
        "properties": [{"name": "level", "desired": {"value": "0"}}],
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": DEVICES.api_version, "kind": "Device", "metadata": metadata, "spec": spec}


async def want(client: KubeClient, device: str, value: int) -> None:
    patch = {"spec": {"properties": [{"name": "level", "desired": {"value": str(value)}}]}}
    await client.patch(DEVICES, Key("default", device), patch)


@contextlib.asynccontextmanager
async def replica_set(
    directory: Path, ports: Sequence[int], *, nodes: Sequence[str], devices: int
) -> AsyncIterator[tuple[ReplicaSet, KubeClient]]:
    """An API with devices, and a replica for each port, behind a balancer; started, and not waited for."""
    mint(directory / "certs", nodes=nodes, names=["127.0.0.1"])
    replicas = ReplicaSet(directory, directory / "kubeconfig", ports)
    try:
        await replicas.start_api()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(KubeError):
                    client = await KubeClient.open(kubeconfig=str(replicas.kubeconfig))
                    try:
                        await client.list_page(CRDS)
                        break
                    except KubeError:
                        await client.close()
                await asyncio.sleep(0.1)
        async with client:
            await declare(client, nodes, devices)
            await replicas.balancer.start()
            for replica in replicas.ports:
                await replicas.start(replica)
            yield replicas, client
    finally:
        await replicas.stop()
