"""The connection: how it is made, limited, lost and made again."""

import asyncio
import itertools
from pathlib import Path

import msgspec
import pytest

from cloudedge import ConnectionLost, new_message
from cloudedge.certificates import mint
from edgecore.bus import Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edgehub import TokenBucket, dialling
from edgecore.edgehub.dialling import MAX_RETRY_S, retry_delays
from tests.edgecore.hub_world import Events, Told
from tests.edgecore.peers import NODE, FakeCloud


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


def test_the_first_retry_is_soon_and_the_others_spread_up_to_a_cap() -> None:
    for _ in range(50):
        delays = list(itertools.islice(retry_delays(), 8))
        assert 0 < delays[0] <= 1
        assert all(0.5 <= d <= MAX_RETRY_S for d in delays[1:])
        assert delays[-1] >= MAX_RETRY_S / 2
    assert len({next(retry_delays()) for _ in range(20)}) > 10


async def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    loop = asyncio.get_running_loop()
    bucket = TokenBucket(rate=100, burst=50)
    start = loop.time()
    for _ in range(50):
        await bucket.take()
    assert loop.time() - start < 0.1
    for _ in range(20):
        await bucket.take()
    assert loop.time() - start >= 0.19


async def test_a_cut_is_noticed_at_once_and_repaired_within_seconds(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        await cloud.cut()
        await events.lost.get()
        with pytest.raises(ConnectionLost):
            await events.bus.publish(Upstream(new_message(source="", group="", operation="", resource="")))
        await events.connected.get()
        assert cloud.connected == 2


@pytest.mark.parametrize("turns", range(6))
async def test_a_stop_that_meets_a_cut_is_still_a_stop(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, turns: int
) -> None:
    """Whatever the hub is doing about the cut, a cancellation must not be taken for that of its keepalive."""
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        connection = events.hub._connection
        assert connection is not None
        connection.abort()
        await connection.wait_closed()
        for _ in range(turns):
            await asyncio.sleep(0)
        events._task.cancel()
        done, _ = await asyncio.wait([events._task], timeout=5)
        assert done


async def test_a_cloud_that_falls_silent_is_given_up(settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path) -> None:
    """The socket stays open and takes what is written, but nobody answers."""
    impatient = msgspec.structs.replace(
        settings, websocket=msgspec.structs.replace(settings.websocket, read_deadline=0.3)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudedge.dialling._PING_IDLE_S", 0.3)
        async with Events(impatient, tmp_path) as events, asyncio.timeout(10):
            await events.connected.get()
            assert cloud.connection is not None
            transport = cloud.connection._transport
            assert transport is not None
            transport.underlying_transport.pause_reading()
            await events.lost.get()
            cloud.connection.abort()


async def test_keepalives_come_at_once_and_then_every_heartbeat(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async with Events(msgspec.structs.replace(settings, heartbeat=0.05), tmp_path):
        await cloud.until(lambda: len(cloud.messages) >= 4)
        assert {m.route.operation for m in cloud.messages} == {"keepalive"}


async def test_a_problem_is_logged_once_with_what_to_do_and_is_not_the_end(
    settings: EdgeHubConfig,
    cloud: FakeCloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dialling, "FIRST_RETRY_S", 0.11)
    monkeypatch.setattr(dialling, "MAX_RETRY_S", 0.12)
    mint(tmp_path / "other", nodes=[NODE], names=["127.0.0.1"])
    good = {name: Path(getattr(settings, f"tls_{name}_file")).read_bytes() for name in ("ca", "cert", "private_key")}
    files = {name: tmp_path / name for name in good}
    mine = msgspec.structs.replace(settings, **{f"tls_{name}_file": str(file) for name, file in files.items()})

    told = Told()
    caplog.handler.addFilter(told)

    async with Events(mine, tmp_path) as events, asyncio.timeout(20):
        await told.until("certificates cannot be used")
        for name, file in files.items():
            file.write_bytes(good[name])
        files["ca"].write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
        await told.until("tlsCaFile)")
        files["ca"].write_bytes(good["ca"])
        await events.connected.get()
        await cloud.stop()
        await events.lost.get()
        await told.until("is cloudcore running")
        await cloud.start()
        await events.connected.get()
    problems = [r.getMessage() for r in caplog.records if "cannot" in r.getMessage()]
    assert len(problems) == len(set(problems))
