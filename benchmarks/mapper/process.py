"""A mapper process as an operator starts it, and a look at its `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

__all__ = ["MapperProcess", "mapper_process", "metric_sum"]


class MapperProcess:
    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port


@contextlib.asynccontextmanager
async def mapper_process(folder: Path, protocols: Sequence[str], edgecore_socket: Path) -> AsyncIterator[MapperProcess]:
    """`kubetwin mapper run PROTOCOL…` while the block runs."""
    port = _free_port()
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "grpc_server": {"socket_path": str(folder / "mapper.sock")},
                "common": {"name": "bench", "edgecore_sock": str(edgecore_socket), "http_port": port},
                "log": {"level": "warning"},
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetwin", "mapper", "run", *protocols, "--config", str(config)
    )
    try:
        yield MapperProcess(process.pid, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def metric_sum(mapper: MapperProcess, name: str) -> float:
    """The sum of a metric over all its labels."""
    url = f"http://127.0.0.1:{mapper.port}/metrics"
    text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read())).decode()
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    values = [float(value) for series, _, value in samples if series.partition("{")[0] == name]
    if not values:
        raise LookupError(f"{url} has no {name}")
    return sum(values)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
