"""Idle nodes at one CloudCore: what a connection costs in memory, and how long until all are back after a restart.

CloudCore is a process of its own at an embedded API server; nodes are in two more processes, with certificates of their
own and keepalives (`node_clients`). Memory is the growth of CloudCore's RSS, all that comes with a node included.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import yaml

from benchmarks.figures import cpu_seconds, figure, rss_mib
from cloudedge import certificates
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import install_crds, open_client

CLIENTS: Final = 2
POLL_S: Final = 1.0
SPARE_FILES: Final = 500
CONNECTED_WITHIN_S: Final = 900.0
SETTLE_S: Final = 20.0
"""A round of keepalives and more."""


def run(seconds: float, *, nodes: int = 500) -> None:  # noqa: ARG001 - the same signature as every benchmark
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if nodes > hard - SPARE_FILES:
        print(f"# open files are limited to {hard}: {hard - SPARE_FILES} nodes instead of {nodes}", flush=True)
        nodes = hard - SPARE_FILES
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_run(Path(directory), nodes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _run(directory: Path, nodes: int) -> None:
    certificates.mint(directory / "certs", nodes=[], names=["127.0.0.1"])
    async with ApiServer(directory / "api") as api:
        async with await open_client(api) as kube:
            await install_crds(kube)
        config = directory / "cloudcore.yaml"
        config.write_text(yaml.safe_dump(_config(directory / "certs", api.kubeconfig, port=0, nodes=nodes)))
        async with _cloudcore(config, directory / "first.log") as cloud:
            config.write_text(
                yaml.safe_dump(_config(directory / "certs", api.kubeconfig, port=cloud.port, nodes=nodes))
            )
            await asyncio.sleep(2)
            idle = rss_mib(cloud.pid)
            figure("channel.nodes.idle_rss", idle, "MiB")
            async with _clients(directory / "certs", cloud.port, nodes) as clients:
                began = time.monotonic()
                await _all_here(cloud, nodes)
                figure("channel.nodes.all_connected", time.monotonic() - began, "s")
                lapses = (directory / "first.log").read_text().count("its Lease has run out")
                figure("channel.nodes.all_connected_lapses", lapses, "times that CloudCore lost its own Lease")
                await asyncio.sleep(SETTLE_S)
                grown_kib = (rss_mib(cloud.pid) - idle) * 1024
                figure("channel.nodes.connected", await _gauge(cloud), "nodes")
                figure("channel.nodes.rss_per_node", grown_kib / nodes, "KiB")
                cpu, began = cpu_seconds(cloud.pid), time.monotonic()
                await asyncio.sleep(15)
                share = (cpu_seconds(cloud.pid) - cpu) / (time.monotonic() - began)
                figure("channel.nodes.idle_cpu", share * 100, "% of a core")
                cloud.process.kill()
                await cloud.process.wait()
                began, clients_cpu = time.monotonic(), sum(map(cpu_seconds, clients))
                async with _cloudcore(config, directory / "second.log") as again:
                    figure("channel.nodes.restart_listens", time.monotonic() - began, "s")
                    cpu = cpu_seconds(again.pid)
                    await _all_here(again, nodes)
                    figure("channel.nodes.restart_all_back", time.monotonic() - began, "s")
                    figure("channel.nodes.restart_cpu_per_node", (cpu_seconds(again.pid) - cpu) / nodes * 1000, "ms")
                    share = sum(map(cpu_seconds, clients)) - clients_cpu
                    figure("channel.nodes.restart_clients_cpu_per_node", share / nodes * 1000, "ms")
                    figure("channel.nodes.load", os.getloadavg()[0], "processes")


class _Cloud:
    def __init__(self, process: asyncio.subprocess.Process, port: int, monitor: int) -> None:
        self.process = process
        self.pid = process.pid
        self.port = port
        self.monitor = monitor


@asynccontextmanager
async def _cloudcore(config: Path, log: Path) -> AsyncIterator[_Cloud]:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cloudcore", "--config", config, stderr=file
        )
    try:
        port = await _logged(process, log, r"CloudHub listening on \S+:(\d+)")
        monitor = await _logged(process, log, r"metrics and health at http://\S+:(\d+)")
        yield _Cloud(process, port, monitor)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _logged(process: asyncio.subprocess.Process, log: Path, pattern: str) -> int:
    async with asyncio.timeout(60):
        while (match := re.search(pattern, log.read_text())) is None:
            if process.returncode is not None:
                raise RuntimeError(f"cloudcore ended: {log.read_text()}")
            await asyncio.sleep(0.05)
    return int(match[1])


@asynccontextmanager
async def _clients(certs: Path, port: int, nodes: int) -> AsyncIterator[list[int]]:
    """Goes on when their certificates are made and they start to dial. Yields the processes' ids."""
    processes = []
    try:
        for number in range(CLIENTS):
            first, last = nodes * number // CLIENTS, nodes * (number + 1) // CLIENTS
            arguments = ("--port", port, "--first", first, "--count", last - first, "--certs", certs)
            command = [sys.executable, "-m", "benchmarks.channel.node_clients", *map(str, arguments)]
            processes.append(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError("a process of nodes ended")
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _all_here(cloud: _Cloud, nodes: int) -> None:
    async with asyncio.timeout(CONNECTED_WITHIN_S):
        while await _gauge(cloud) < nodes:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_S)


async def _gauge(cloud: _Cloud) -> float:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{cloud.monitor}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    text = await asyncio.to_thread(read)
    match = re.search(r"^KubeEdge_CloudHub_connected_nodes (\S+)", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def _config(certs: Path, kubeconfig: Path, *, port: int, nodes: int) -> dict[str, object]:
    hub = {
        "nodeLimit": nodes,
        "tlsCAFile": str(certs / "ca.crt"),
        "tlsCAKeyFile": str(certs / "ca.key"),
        "tlsCertFile": str(certs / "server.crt"),
        "tlsPrivateKeyFile": str(certs / "server.key"),
        "advertiseAddress": ["127.0.0.1"],
        "websocket": {"address": "127.0.0.1", "port": port},
        "https": {"address": "127.0.0.1", "port": 0},
    }
    return {
        "kind": "CloudCore",
        "commonConfig": {"monitorServer": {"bindAddress": "127.0.0.1:0"}},
        "kubeAPIConfig": {"kubeConfig": str(kubeconfig)},
        "modules": {"cloudHub": hub},
    }
