"""Joining and renewing at the real cloud core's service: our two ends against each other."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudcore.joining import CredentialFiles, Joining, JoiningSettings, JoinSettings
from cloudcore.kube import Key, Kind, KubeClient, KubeError
from edgecore.joining.child import do
from edgecore.joining.identity import NodeFiles, read_identity
from edgecore.joining.job import Job, Outcome
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import open_client

SECRETS = Kind(group="", version="v1", plural="secrets", kind="Secret")


class Cloud:
    def __init__(self, joining: Joining, token: str) -> None:
        assert joining.service is not None
        self.url = f"https://127.0.0.1:{joining.service.port}"
        self.token = token


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Cloud]:
    d = tmp_path / "cloud"
    files = CredentialFiles(d / "ca.crt", d / "ca.key", d / "server.crt", d / "server.key")
    settings = JoiningSettings(files, ("127.0.0.1",), JoinSettings("127.0.0.1", 0))
    async with ApiServer(tmp_path / "api") as api, await open_client(api) as kube:
        joining = Joining(kube, settings)
        await joining.open()
        task = asyncio.create_task(joining.run())
        try:
            yield Cloud(joining, await _token(kube))
        finally:
            task.cancel()
            await asyncio.wait([task])


async def _token(kube: KubeClient) -> str:
    async with asyncio.timeout(15):
        while True:
            try:
                secret = await kube.get(SECRETS, Key("kubeedge", "tokensecret"))
                return base64.b64decode(secret["data"]["tokendata"]).decode()
            except KubeError:
                await asyncio.sleep(0.02)


async def test_a_name_longer_than_common_names_are_joins(real: Cloud, tmp_path: Path) -> None:
    node = ".".join(["gateway-of-the-boiler-house-in-the-northern-yard"] * 5)
    assert len(node) > 200
    files = NodeFiles(*(str(tmp_path / name) for name in ("rootCA.crt", "server.crt", "server.key")))
    assert await asyncio.to_thread(do, Job("join", node, real.url, files, token=real.token)) == Outcome()
    first = read_identity(files, node)
    assert await asyncio.to_thread(do, Job("renew", node, real.url, files)) == Outcome()
    assert read_identity(files, node).serial != first.serial


async def test_a_node_joins_and_renews(real: Cloud, tmp_path: Path) -> None:
    files = NodeFiles(*(str(tmp_path / name) for name in ("rootCA.crt", "server.crt", "server.key")))
    joined = await asyncio.to_thread(do, Job("join", "edge-7", real.url, files, token=real.token))
    assert joined == Outcome()
    first = read_identity(files, "edge-7")
    assert await asyncio.to_thread(do, Job("renew", "edge-7", real.url, files)) == Outcome()
    assert read_identity(files, "edge-7").serial != first.serial
    forged = real.token[:-6] + ("AAAAAA" if not real.token.endswith("AAAAAA") else "BBBBBB")
    refused = await asyncio.to_thread(do, Job("join", "edge-7", real.url, files, token=forged))
    assert refused.final
    assert "make a new join token" in refused.problem
    other = await asyncio.to_thread(do, Job("renew", "edge-8", real.url, files))
    assert other.final  # a certificate of edge-7 gives none for edge-8
    assert read_identity(files, "edge-7")
