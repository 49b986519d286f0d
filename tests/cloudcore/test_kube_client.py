"""The API client: errors by what to do next, credentials that change, where the server is."""

import asyncio
import datetime
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

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
from cloudcore.kube.decoding import MAX_DEPTH
from cloudcore.kube.errors import error_for
from cloudcore.kube.objects import version_number
from kubetwin.apiserver import ApiServer
from tests.cloudcore.list_watch_server import KIND as THINGS
from tests.cloudcore.support import Kubernetes, device, model
from tests.garbage import uncollected


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


async def test_a_pod_whose_token_cannot_be_read_tries_again(tmp_path: Path) -> None:
    token, seen = tmp_path / "token", []
    token.write_text("one")

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"items": []})

    async with serving(answer) as url, await KubeClient.open(master=url) as client:
        loader = InClusterConfigLoader(token_filename=str(token), cert_filename="")
        loader.host, loader.ssl_ca_cert = url, None
        loader._token_refresh_period = datetime.timedelta(0)
        loader._read_token_file()
        loader._set_config(client._configuration)
        await client.list_page(THINGS)
        for spoil in (token.unlink, token.touch):  # as with no file descriptor left, and in the middle of a write
            spoil()
            with pytest.raises(Unavailable, match="list things: the token for"):
                await client.list_page(THINGS)
        token.write_text("two")
        await client.list_page(THINGS)
    assert seen == ["bearer one", "bearer two"]


async def test_what_is_nested_too_deeply_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tail = ',"kind":"after"}'
    deep = '{"metadata":{"name":"deep","text":"]}\\"["},"spec":' + '{"a":[' * 50_000 + "1" + "]}" * 50_000 + tail

    async def answer(request: web.Request) -> web.Response:
        watch = '{"type":"ADDED","object":' + deep + "}\n"
        return web.Response(text=watch * 2 if "watch" in request.query else '{"items":[' + deep + "]}")

    async with serving(answer) as url, await KubeClient.open(master=url) as client:
        page = await client.list_page(THINGS)
        async with await client.watch(THINGS, resource_version="1", timeout_s=5, read_timeout_s=5.0) as stream:
            events = [await stream.next(), await stream.next()]
    for found in (*page.items, *(event.object for event in events if event is not None)):
        assert found["metadata"] == {"name": "deep", "text": ']}"['}
        assert found["kind"] == "after"
        assert 150 < str(found["spec"]).count("[") * 2 <= MAX_DEPTH
        assert "None" in str(found["spec"])
    assert [r.message.partition(":")[0] for r in caplog.records] == ["list things", "watch things deep"]


@pytest.mark.parametrize("body", ("[" * 5000, '{"a":"' + "[" * 500, "{" + '"a":{' * 300, '{"a":' * 300 + "}" * 299))
async def test_what_is_deep_and_no_json_is_an_answer_that_cannot_be_used(body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body)

    async with serving(answer) as url, await KubeClient.open(master=url) as client:
        with pytest.raises(Unavailable, match="list things: the answer is not JSON"):
            await client.list_page(THINGS)


@pytest.mark.parametrize("items", ("", ',"items":7', ',"items":{"a":{}}', ',"items":[{},null]', ',"items":""'))
async def test_what_is_no_list_is_not_taken_for_an_empty_one(items: str) -> None:
    body = '{"kind":"Status","metadata":[]' + items + "}"

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body)

    async with serving(answer) as url, await KubeClient.open(master=url) as client:
        with pytest.raises(Unavailable, match="list things: the answer is no list"):
            await client.list_page(THINGS)


def test_a_failure_can_be_read_whatever_it_holds() -> None:
    deep = b'{"message":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    assert isinstance(error_for(500, deep, what="list things"), Unavailable)
    assert error_for(429, b"", what="list things", retry_after="\u00b2").retry_after_s == 0
    assert error_for(0, b'{"code":"410"}', what="watch things").status == 500, "an event that has no number"
    assert (version_number("7" * 5000), version_number("18446744073709551615")) == (0, 2**64 - 1)


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server that gives this answer to who lists or watches things."""
    app = web.Application()
    app.router.add_get(THINGS.path(), answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("way", ("silent", "closing", "refusing"))
async def test_requests_that_fail_leave_nothing_to_a_garbage_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each would hold the 256 KiB of its TLS buffers, and garbage is collected by how many objects there are."""
    monkeypatch.setattr("cloudcore.kube.client._CONNECT_TIMEOUT_S", 0.1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if way == "silent":
            await reader.read(-1)
        writer.close()

    def held() -> int:
        return sum(type(one).__name__ in ("SSLProtocol", "ClientRequest") for one in gc.get_objects())

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if way == "refusing":
        server.close()
    file = tmp_path / "kubeconfig"
    config = {
        "clusters": [
            {"name": "c", "cluster": {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}}
        ],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file.write_text(yaml.safe_dump(config))
    async with await KubeClient.open(kubeconfig=str(file)) as client:
        with uncollected():
            before = held()
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await client.get(DEVICES, Key("default", "boiler-1"))
            await asyncio.sleep(0)  # what was cancelled ends
            assert held() == before
    server.close()
