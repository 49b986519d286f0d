"""A served Kubernetes API with KubeEdge's definitions, a real kubectl, and `kubectl-twin` run as a person would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cloudcore import crds
from kubetwin.apiserver import ApiServer
from kubetwin.kubectl import Kubectl, kubectl_path

TWIN = str(Path(sys.executable).parent / "kubectl-twin")
DEADLINE_S = 60.0


class Ran:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def rows(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()[1:]]


class Following:
    """A command that goes on; its standard output line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process, self.out, self.err = process, process.stdout, process.stderr

    async def line(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return (await self.out.readline()).decode().rstrip("\n")

    async def complaint(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return (await self.err.readline()).decode().rstrip("\n")

    async def until(self, wanted: Callable[[str], bool]) -> str:
        while True:
            line = await self.line()
            assert line or not self.out.at_eof(), "it ended"
            if wanted(line):
                return line


class TwinWorld:
    def __init__(self, server: ApiServer, home: Path) -> None:
        self.server = server
        self.env = {
            **os.environ, "KUBECONFIG": str(server.kubeconfig), "HOME": str(home),
            "KUBECACHEDIR": str(home / "cache"), "COLUMNS": "200",
        }  # fmt: skip
        cache = ("--cache-dir", str(home / "cache"))
        self.kubectl = Kubectl((kubectl_path(), "--kubeconfig", str(server.kubeconfig), *cache))

    async def start(self, *arguments: str, **env: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            TWIN, *arguments, env={**self.env, **env}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def twin(self, *arguments: str, **env: str) -> Ran:
        process = await self.start(*arguments, **env)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    @contextlib.asynccontextmanager
    async def following(self, *arguments: str) -> AsyncIterator[Following]:
        process = await self.start(*arguments)
        try:
            yield Following(process)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()

    async def apply(self, *objects: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        await self.run("apply", "-f", "-", stdin=text)

    async def run(self, *arguments: str, stdin: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            kubectl_path(), *arguments, env=self.env, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def report(self, name: str, *twins: dict[str, Any], namespace: str = "default", **status: Any) -> None:
        """What CloudCore would write into a DeviceStatus."""
        patch = {"status": {**({"twins": list(twins)} if twins else {}), **status}}
        await self.kubectl.patch("devicestatuses", namespace, name, patch, "merge")


@contextlib.asynccontextmanager
async def twin_world(directory: Path) -> AsyncIterator[TwinWorld]:
    async with ApiServer(directory / "data") as server:
        world = TwinWorld(server, directory)
        await world.run("apply", "-f", "-", stdin=crds.render())
        yield world


def model(name: str = "boiler", namespace: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "protocol": "modbus",
            "properties": [
                {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly", "unit": "Celsius",
                 "description": "Water temperature"},
                {"name": "set-point", "type": "FLOAT", "accessMode": "ReadWrite", "unit": "Celsius",
                 "minimum": "20", "maximum": "95"},
                {"name": "pump", "type": "BOOLEAN", "accessMode": "ReadWrite"},
            ],
        },
    }  # fmt: skip


def device(name: str = "boiler-1", namespace: str = "default", *, line: str = "", **desired: str) -> dict[str, Any]:
    """`line`: a label. `desired`: by property, `_` for `-`."""
    wanted = {key.replace("_", "-"): value for key, value in desired.items()}
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": name, "namespace": namespace, "labels": {"line": line}},
        "spec": {
            "deviceModelRef": {"name": "boiler"}, "nodeName": "edge-1",
            "protocol": {"protocolName": "modbus", "configData": {"ip": "192.0.2.7", "password": "hunter2"}},
            "properties": [
                {"name": p, "collectCycle": 1000, **({"desired": {"value": wanted[p]}} if p in wanted else {})}
                for p in ("temperature", "set-point", "pump")
            ],
        },
    }  # fmt: skip


def status(name: str = "boiler-1", *twins: dict[str, Any], namespace: str = "default", **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceStatus",
        "metadata": {"name": name, "namespace": namespace}, "spec": {},
        "status": {"twins": list(twins), "state": "online", "lastOnlineTime": "2026-01-02T03:04:05Z", **more},
    }  # fmt: skip


def reported(
    name: str, value: str, *, age_s: float = 1.0, desired: str | None = None, write: str = "", why: str = "",
    **metadata: str,
) -> dict[str, Any]:  # fmt: skip
    """A twin as kubetwin's CloudCore writes it; without `write` and quality, as a stock one does."""
    at = {"timestamp": str(round((time.time() - age_s) * 1000))}
    told = {k: v for k, v in (("write", write), ("reason", why)) if v}
    return {
        "propertyName": name,
        "reported": {"value": value, "metadata": {**at, **metadata}},
        "observedDesired": {"value": desired or "", "metadata": {**at, **told} if desired else {}},
    }
