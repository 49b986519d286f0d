"""The API client: errors by what to do next, credentials that change, where the server is."""

import asyncio
import time
from pathlib import Path

import pytest
import yaml

from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    Key,
    KubeClient,
    KubeConfigError,
    KubeError,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from cloudcore.kube.client import _TokenBucket
from cloudcore.kube.errors import error_for
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Kubernetes, device, model


@pytest.mark.parametrize(
    ("status", "type_"),
    (
        (400, Invalid),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (422, Invalid),
        (429, TooManyRequests),
        (500, Unavailable),
        (503, Unavailable),
        (418, KubeError),
    ),
)
@pytest.mark.parametrize("body", (b'{"message":"why"}', b"why", b"\xff why", b"[]", b""))
def test_every_status_has_its_error(status: int, type_: type[KubeError], body: bytes) -> None:
    error = error_for(status, body, what="get things a/b", retry_after="7")
    assert type(error) is type_
    assert str(error).startswith("get things a/b: ")
    assert error.retry_after_s == 7.0


async def test_real_errors(kube: Kubernetes) -> None:
    key = Key("default", "thermo-1")
    with pytest.raises(NotFound, match="get devices default/thermo-1"):
        await kube.get(DEVICES, key)
    with pytest.raises(NotFound):
        await kube.patch(STATUSES, key, {"status": {}})
    created = await kube.create(DEVICES, device())
    with pytest.raises(AlreadyExists):
        await kube.create(DEVICES, device())
    with pytest.raises(Invalid, match=r"spec\.properties"):
        await kube.create(MODELS, model(properties=[{"name": "a", "type": "WORD"}]))
    with pytest.raises(Conflict):
        await kube.delete(DEVICES, key, uid="another")
    await kube.delete(DEVICES, key, uid=created["metadata"]["uid"])
    with pytest.raises(NotFound):
        await kube.delete(DEVICES, key)


async def test_server_that_does_not_answer() -> None:
    async with await KubeClient.open(master="http://127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match="does not answer"):
            await client.get(DEVICES, Key("default", "d"))


async def test_kubeconfig_is_read_again_when_its_token_is_refused(tmp_path: Path, api: ApiServer) -> None:
    good = yaml.safe_load(api.kubeconfig.read_text())
    bad = yaml.safe_load(api.kubeconfig.read_text())
    bad["users"][0]["user"] = {"token": "expired"}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(bad))
    async with await KubeClient.open(kubeconfig=str(file)) as client:
        with pytest.raises(Unauthorized):
            await client.list_page(DEVICES)
        file.write_text(yaml.safe_dump(good))
        client._reloaded_at -= 60
        with pytest.raises(Unauthorized):
            await client.list_page(DEVICES)
        with pytest.raises(NotFound):  # let in; only the CRDs are not installed
            await client.list_page(DEVICES)


@pytest.mark.parametrize("text", ("", "[", "a: b", "clusters: []\ncontexts: []\nusers: []\ncurrent-context: x", "3"))
async def test_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(KubeConfigError, match="kubeconfig"):
        await KubeClient.open(kubeconfig=str(file))


async def test_neither_kubeconfig_nor_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeConfigError, match=r"set kubeAPIConfig\.kubeConfig"):
        await KubeClient.open()


async def test_requests_are_limited_after_the_burst() -> None:
    bucket = _TokenBucket(rate=100.0, burst=5)
    start = time.monotonic()
    await asyncio.gather(*(bucket.take() for _ in range(5)))
    assert time.monotonic() - start < 0.04
    await asyncio.gather(*(bucket.take() for _ in range(10)))
    assert 0.08 <= time.monotonic() - start < 2
