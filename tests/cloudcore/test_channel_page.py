"""The page on the channel: what a running cloud core serves is what the page says."""

from __future__ import annotations

import asyncio
import re
import ssl
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Kubernetes, install_crds, open_client
from tests.cloudcore.test_cloudcore_process import Process, cloudcore, configuration
from tests.docs.page import DOCS


def get(url: str) -> tuple[int, str]:
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def until_answer(url: str, status: int) -> str:
    async with asyncio.timeout(30):
        while (answer := await asyncio.to_thread(get, url))[0] != status:  # noqa: ASYNC110 - as a balancer does
            await asyncio.sleep(0.1)
    return answer[1]


async def listening(running: Process) -> tuple[str, str]:
    """Where its metrics are, and where nodes join."""
    await running.until_log("CloudHub listening")
    monitor = re.search(r"metrics and health at (http://\S+)", running.log)
    joining = re.search(r"nodes join at (https://\S+)", running.log)
    assert monitor is not None
    assert joining is not None
    return monitor[1], joining[1]


async def test_every_metric_is_on_the_page(tmp_path: Path, api: ApiServer, kube: Kubernetes, certs: Path) -> None:
    async with cloudcore(configuration(tmp_path, certs, api.kubeconfig)) as running:
        monitor, joining = await listening(running)
        for port in (monitor, joining):
            await until_answer(port + "/readyz", 200)
        text = await until_answer(monitor + "/metrics", 200)
        await running.stop()
    served = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    page = (DOCS / "channel.md").read_text()
    named = {f"kubetwin_cloudcore{rest}" for rest in re.findall(r"(?:kubetwin_cloudcore|…)(_[a-z_]+)", page)}
    named |= set(re.findall(r"process_[a-z_]+|KubeEdge_[A-Za-z_]+", page))
    assert sorted(served - named) == [], "not on the page"
    assert sorted(named - served) == [], "not served"


@pytest.mark.slow
async def test_a_replica_that_does_not_reach_the_api_wants_no_new_nodes(tmp_path: Path, certs: Path) -> None:
    async with AsyncExitStack() as until_away:
        api = await until_away.enter_async_context(ApiServer(tmp_path / "api"))
        async with await open_client(api) as kube:
            await install_crds(kube)
        async with cloudcore(configuration(tmp_path, certs, api.kubeconfig)) as running:
            ports = await listening(running)
            for port in ports:
                await until_answer(port + "/readyz", 200)
            await until_away.aclose()
            for port in ports:
                assert "replica: its Lease is not renewed" in await until_answer(port + "/readyz", 503)
            await running.stop()
