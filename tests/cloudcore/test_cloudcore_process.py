"""The `cloudcore` command as a process of its own."""

import asyncio
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudedge import ConnectionRefused, certificates, tls
from cloudedge.dialling import connect
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Edge, Kubernetes, device, install_crds, model, open_client


def configuration(directory: Path, certs: Path, kubeconfig: Path, **hub: object) -> Path:
    file = directory / "cloudcore.yaml"
    content = {
        "kind": "CloudCore",
        "commonConfig": {"monitorServer": {"bindAddress": "127.0.0.1:0"}},
        "kubeAPIConfig": {"kubeConfig": str(kubeconfig)},
        "modules": {
            "cloudHub": {
                "tlsCAFile": str(certs / "ca.crt"),
                "tlsCAKeyFile": str(certs / "ca.key"),
                "tlsCertFile": str(certs / "server.crt"),
                "tlsPrivateKeyFile": str(certs / "server.key"),
                "advertiseAddress": ["127.0.0.1"],
                "websocket": {"address": "127.0.0.1", "port": 0},
                "https": {"address": "127.0.0.1", "port": 0},
                **hub,
            }
        },
    }
    file.write_text(yaml.safe_dump(content))
    return file


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""

    async def until_log(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while not (match := re.search(pattern, self.log)):
                line = await self.process.stderr.readline()
                assert line, f"ended without {pattern!r}: {self.log}"
                self.log += line.decode()
        return match

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, rest = await asyncio.wait_for(self.process.communicate(), 10)
        self.log += rest.decode()
        return time.monotonic() - start


@asynccontextmanager
async def cloudcore(file: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cloudcore", "--config", str(file), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def dial(port: str, certs: Path, *, trusting: Path | None = None) -> Edge:
    context = tls.client_context(
        ca_file=trusting or certs / "ca.crt", cert_file=certs / "edge-1.crt", key_file=certs / "edge-1.key"
    )
    return Edge(await connect(f"wss://127.0.0.1:{port}", node="edge-1", ssl_context=context), "edge-1")


async def ready(monitor: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{monitor}/readyz", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def test_serves_and_stops_on_a_signal(tmp_path: Path, api: ApiServer, kube: Kubernetes, certs: Path) -> None:
    certificates.mint(other := tmp_path / "other", nodes=[], names=[])
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloudcore(configuration(tmp_path, certs, api.kubeconfig)) as running:
        port = (await running.until_log(r"CloudHub listening on 127.0.0.1:(\d+)"))[1]
        edge = await dial(port, certs)
        receiving = asyncio.create_task(edge.run())
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))
        assert (await kube.status("thermo-1"))["extensions"]["summary"] == "valve=5"
        for _ in range(2):
            with pytest.raises(ConnectionRefused):  # an edge that trusts another CA, and so hangs up
                await dial(port, certs, trusting=other / "ca.crt")
        await running.until_log("client from 127.0.0.1 was not taken, no TLS")
        assert await running.stop() < 3
        assert running.process.returncode == 0
        await receiving
        assert "Traceback" not in running.log
        assert running.log.count("CloudHub listening") == 1
        assert running.log.count("was not taken, no TLS") == 1


async def test_starts_while_the_api_server_is_away(tmp_path: Path, certs: Path) -> None:
    async with ApiServer(tmp_path / "api") as api:
        kube = await open_client(api)
        async with kube:
            await install_crds(kube)
            await kube.create(DEVICES, device())
    async with cloudcore(configuration(tmp_path, certs, api.kubeconfig)) as running:
        await running.until_log("does not answer")
        monitor = (await running.until_log(r"metrics and health at (http://\S+)"))[1]
        await running.until_log("CloudHub listening")
        status, text = await ready(monitor)
        assert status == 503
        assert "[-] caches: the API has not listed devices" in text
        assert "[-] edge caches: the API has not listed nodes and pods yet" in text
        async with ApiServer(tmp_path / "api"):
            await running.until_log("devices: 1 listed")
            async with asyncio.timeout(20):
                while (await ready(monitor))[0] != 200:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)
        assert await running.stop(signal.SIGINT) < 3
        assert running.process.returncode == 0


async def test_what_cannot_work_is_said_and_ends_it(tmp_path: Path, certs: Path) -> None:
    missing = tmp_path / "nothing"
    async with cloudcore(configuration(tmp_path, certs, missing)) as running:
        await running.until_log(re.escape(f"kubeconfig {missing} is not there"))
        await running.process.communicate()
        assert running.process.returncode == 1
        assert "Traceback" not in running.log


@pytest.mark.parametrize("listener", ("websocket", "https"))
async def test_address_in_use(tmp_path: Path, api: ApiServer, certs: Path, listener: str) -> None:
    taken = {"address": "127.0.0.1", "port": api.port}
    async with cloudcore(configuration(tmp_path, certs, api.kubeconfig, **{listener: taken})) as running:
        await running.until_log(rf"modules\.cloudHub\.{listener}.*cannot listen on 127\.0\.0\.1:{api.port}")
        await running.process.communicate()
        assert running.process.returncode == 1
        assert "Traceback" not in running.log
