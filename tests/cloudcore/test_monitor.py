"""`/metrics`, `/healthz` and `/readyz` over real HTTP."""

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloudcore.monitor import Monitor, show_counts
from dmi import ConfigError
from dmi.metrics import Metrics


async def get(port: int, path: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


@asynccontextmanager
async def running(monitor: Monitor) -> AsyncIterator[int]:
    serving = asyncio.create_task(monitor.run())
    try:
        while not monitor.port:  # noqa: ASYNC110 - bound in the task's first step
            await asyncio.sleep(0)
        yield monitor.port
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def test_metrics_health_and_readiness() -> None:
    metrics, troubles = Metrics(), {"api": "it is away", "hub": ""}
    metrics.counter("kubetwin_cloudcore_x_total", "X.", "reason").add("because")
    show_counts(metrics, "kubetwin_cloudcore_y_total", "Y.", lambda: {"a word": 3})
    ready = {"api": lambda: troubles["api"], "hub": lambda: troubles["hub"]}
    async with running(Monitor("127.0.0.1:0", metrics, ready=ready)) as port:
        assert await get(port, "/healthz") == (200, "ok\n")
        status, text = await get(port, "/readyz")
        assert status == 503
        assert "[-] api: it is away\n[+] hub\nnot ready" in text
        troubles["api"] = ""
        assert await get(port, "/readyz") == (200, "[+] api\n[+] hub\nready\n")
        status, text = await get(port, "/metrics")
        assert status == 200
        assert 'kubetwin_cloudcore_x_total{reason="because"} 1\n' in text
        assert '# TYPE kubetwin_cloudcore_y_total counter\nkubetwin_cloudcore_y_total{what="a word"} 3\n' in text
        assert "process_resident_memory_bytes" in text
        assert (await get(port, "/debug/pprof/"))[0] == 404


async def test_an_address_that_is_taken_is_said_and_gone_without(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        await asyncio.wait_for(Monitor(address, Metrics(), ready={}).run(), 5)
    assert f"bindAddress {address} cannot be listened on" in caplog.text


@pytest.mark.parametrize("address", ("9091", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"))
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="bindAddress"):
        Monitor(address, Metrics(), ready={})
