"""EventBus with Debian's mosquitto: TLS, passwords, kept sessions, floods; a broker that dies, hangs, comes back."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from edgecore.config import EventBusConfig, EventBusTls
from edgecore.eventbus import client as client_module
from edgecore.eventbus import link as link_module
from edgecore.store.topics import list_topics
from tests.edgecore.mqtt_world import UPDATE, Mosquitto, app, mosquitto, until, world

pytestmark = pytest.mark.programs


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_RETRY_S", 0.3)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as made:
        yield made


def config(broker: Mosquitto, scheme: str = "tcp", host: str = "127.0.0.1", **more: Any) -> EventBusConfig:
    return EventBusConfig(enable=True, mqtt_mode=2, mqtt_server_external=f"{scheme}://{host}:{broker.port}", **more)


@pytest.mark.parametrize("qos", (0, 1, 2))
async def test_apps_and_the_twin_reach_each_other(broker: Mosquitto, tmp_path: Path, qos: int) -> None:
    async with world(config(broker, mqtt_external_qos=qos), tmp_path) as one, app(broker.port, "$hw/#") as local:
        for number in range(100):
            await local.publish(UPDATE, b"%d" % number, qos)
        await until(lambda: len(one.twin) >= 100, "the twin has them")
        assert [event.payload for event in one.twin] == [b"%d" % number for number in range(100)]
        for number in range(100):
            one.tell(f"{UPDATE}/result", b"%d" % number)
        await local.hears(f"{UPDATE}/result", 100)
        assert local.on(f"{UPDATE}/result") == [b"%d" % number for number in range(100)]


async def test_what_apps_say_while_edge_core_restarts_is_there_afterwards(broker: Mosquitto, tmp_path: Path) -> None:
    async with world(config(broker), tmp_path):
        pass
    async with app(broker.port) as local:
        for number in range(50):
            await local.publish(UPDATE, b"%d" % number)
    async with world(config(broker), tmp_path) as one:
        await until(lambda: len(one.twin) >= 50, "all of it")
        assert [event.payload for event in one.twin] == [b"%d" % number for number in range(50)]


async def test_what_was_not_dealt_with_comes_again(broker: Mosquitto, tmp_path: Path) -> None:
    """Acknowledged is what the twin has taken, not what lay in memory when edge core ended."""
    async with world(config(broker), tmp_path) as one, app(broker.port) as local:
        one.twin_may.clear()
        for number in range(10):
            await local.publish(UPDATE, b"%d" % number)
        await asyncio.sleep(0.2)
        assert one.twin == []
    async with world(config(broker), tmp_path) as one:
        await until(lambda: len(one.twin) >= 10, "all of it")
        assert [event.payload for event in one.twin] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("qos", (0, 1))
async def test_ten_thousand_at_once(broker: Mosquitto, tmp_path: Path, qos: int) -> None:
    """mosquitto keeps 1,000 for a client by default; here it may keep all, as the point is what edge core does."""
    await broker.stop()
    broker.configure("max_queued_messages 0")
    await broker.start()
    async with world(config(broker, mqtt_external_qos=qos), tmp_path) as one, app(broker.port) as local:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max([most, *(link._queue.qsize() for link in one.links)])
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        for start in range(0, 10_000, 500):
            await asyncio.gather(*(local.publish(UPDATE, b"%d" % n, qos=1) for n in range(start, start + 500)))
        await until(lambda: len(one.twin) >= 10_000, f"all are there, {len(one.twin)}", within_s=50)
        watching.cancel()
        await asyncio.wait([watching])
        assert most <= link_module.PAUSE_AT + 1
        assert {event.payload for event in one.twin} == {b"%d" % number for number in range(10_000)}


async def test_reading_stops_while_the_twin_is_busy(broker: Mosquitto, tmp_path: Path) -> None:
    async with world(config(broker, mqtt_external_qos=0), tmp_path) as one, app(broker.port) as local:
        one.twin_may.clear()
        for number in range(1000):
            await local.publish(UPDATE, b"%d" % number + b"x" * 1000, qos=0)
        await until(lambda: one.links and one.links[0]._paused_on is not None, "it reads no more")
        await asyncio.sleep(0.3)
        assert one.links[0]._queue.qsize() <= link_module.PAUSE_AT + 1
        one.tell("t", b"publishing goes on")
        await until(lambda: one.count("published_total", "external"), "it has left")
        one.twin_may.set()
        await until(lambda: len(one.twin) == 1000, "then it goes on where it was")


async def test_a_dead_broker_costs_nothing_but_mqtt(broker: Mosquitto, tmp_path: Path) -> None:
    session: dict[str, Any] = {"identifier": "app-1", "clean_session": False}
    await broker.stop()
    broker.configure("max_queued_messages 0", "autosave_on_changes true", "autosave_interval 1")
    await broker.start()
    async with app(broker.port, "all", "latest", **session):
        await asyncio.sleep(0.1)
    async with world(config(broker), tmp_path) as one:
        await broker.stop()
        await until(lambda: one.events.trouble, "it is known")
        assert str(broker.port) in one.events.trouble
        for number in range(3000):
            one.tell("all", b"%d" % number)
            one.tell("latest", b"%d" % number, latest=True)
        assert one.count("dropped_total", "external", "full") >= 3000 - client_module.MAX_WAITING
        await one.say("subscribe", "default/while-away")
        await broker.start()
        async with app(broker.port, **session) as local:
            await until(lambda: local.on("latest"), "the newest")
            await until(lambda: len(local.on("all")) >= client_module.MAX_WAITING - 1, "what there was room for")
            assert set(local.on("latest")) <= {b"2999"}, "the newest only"
            assert local.on("all") == [b"%d" % number for number in range(3000)][-len(local.on("all")) :], "in order"
            await one.settled()
            await local.publish("default/while-away", b"x")
            await until(lambda: one.cloud, "what was asked for meanwhile is subscribed to")
            assert one.events.trouble == ""
        assert await one.database.run(list_topics) == ["default/while-away"]


def _connections(broker: Mosquitto) -> int:
    mine = psutil.Process().net_connections("tcp")
    return len([one for one in mine if one.raddr and one.raddr.port == broker.port])


async def test_a_broker_that_hangs_is_left_and_found_again(
    broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "ANSWER_S", 1.0)
    session: dict[str, Any] = {"identifier": "app-1", "clean_session": False}
    async with app(broker.port, "t", **session):
        pass
    async with world(config(broker), tmp_path) as one:
        broker.send(signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            since = loop.time()
            for number in range(100):
                one.tell("t", b"%d" % number)
            assert loop.time() - since < 1, "nobody waits for it"
            await until(lambda: one.events.trouble, "it is known")
            await asyncio.sleep(3 * link_module.ANSWER_S)
            assert _connections(broker) <= 2, "what did not work is closed"
        finally:
            broker.send(signal.SIGCONT)
        async with app(broker.port, **session) as local:
            await one.up()
            one.tell("t", b"end")
            await until(lambda: b"end" in local.on("t"), "it goes on")
            newest = {payload: at for at, payload in enumerate(local.on("t"))}
            assert sorted(newest, key=newest.__getitem__) == [*(b"%d" % number for number in range(100)), b"end"]
            assert _connections(broker) == 3, "two, and the app's"
            await one.settled()
            await local.publish(UPDATE, b"x")
            await until(lambda: one.twin, "in both directions")


async def test_edge_core_ends_while_a_broker_hangs(broker: Mosquitto, tmp_path: Path) -> None:
    """Also when no more fits into the socket, not even a good-bye."""
    loop = asyncio.get_running_loop()
    async with world(config(broker, mqtt_external_qos=0), tmp_path) as one:
        broker.send(signal.SIGSTOP)
        for _ in range(7):
            one.tell("t", b"x" * 1_000_000)
        await asyncio.sleep(0.5)
        since = loop.time()
    assert loop.time() - since < link_module.ANSWER_S / 2
    broker.send(signal.SIGCONT)


async def test_a_message_that_the_broker_does_not_like_is_given_up(broker: Mosquitto, tmp_path: Path) -> None:
    await broker.stop()
    broker.configure("max_packet_size 1000")
    await broker.start()
    async with world(config(broker), tmp_path) as one, app(broker.port, "t") as local:
        one.tell("t", b"x" * 5000)
        one.tell("t", b"small")
        await until(lambda: b"small" in local.on("t"), "the next one gets through")
        assert one.count("dropped_total", "external", "refused") == 1
        assert local.on("t") == [b"small"]


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    server, client = made.issue_cert("localhost"), made.issue_cert("edge-1")
    server.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    return made


def _tls_lines(d: Path) -> tuple[str, ...]:
    own = (f"cafile {d}/ca.pem", f"certfile {d}/server.pem", f"keyfile {d}/server.pem", "require_certificate true")
    return ("listener PORT 127.0.0.1", "allow_anonymous true", *own)


async def test_tls_with_certificates_on_both_sides(tmp_path: Path, authority: trustme.CA) -> None:
    async with mosquitto(tmp_path, *_tls_lines(tmp_path)) as broker:
        tls = EventBusTls(True, f"{tmp_path}/ca.pem", f"{tmp_path}/client.pem", f"{tmp_path}/client.key")
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        reach: dict[str, Any] = {"tls_context": context, "hostname": "localhost"}
        settings = config(broker, "ssl", "localhost", tls=tls)
        async with world(settings, tmp_path) as one, app(broker.port, "$hw/#", **reach) as local:
            for number in range(300):
                await local.publish(UPDATE, b"%d" % number + b"x" * 500)
            await until(lambda: len(one.twin) >= 300, "the twin has them")
            one.tell(f"{UPDATE}/result", b"ok")
            await local.hears(f"{UPDATE}/result")


async def test_a_broker_that_nobody_vouches_for_gets_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    async with mosquitto(tmp_path, *_tls_lines(tmp_path)) as broker:
        stranger = trustme.CA()
        stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
        tls = EventBusTls(True, f"{tmp_path}/stranger.pem", "", "")
        for more in ({"tls": tls}, {}):
            async with world(config(broker, "ssl", "localhost", **more), tmp_path, connect=False) as one:
                await until(lambda: "certificate" in one.events.trouble.lower(), "it is said")
        wrong_name = EventBusTls(True, f"{tmp_path}/ca.pem", "", "")
        async with world(config(broker, "ssl", "127.0.0.1", tls=wrong_name), tmp_path, connect=False) as one:
            await until(lambda: "certificate" in one.events.trouble.lower(), "it is said")


async def test_user_and_password(tmp_path: Path) -> None:
    users = tmp_path / "users"
    passwd = await asyncio.create_subprocess_exec("mosquitto_passwd", "-c", "-b", str(users), "edge", "s3cret-word")
    assert await passwd.wait() == 0
    secret = tmp_path / "secret"
    secret.write_text("s3cret-word\n")
    secret.chmod(0o600)
    async with mosquitto(
        tmp_path, "listener PORT 127.0.0.1", "allow_anonymous false", f"password_file {users}"
    ) as broker:
        right = config(broker, mqtt_username="edge", mqtt_password_file=str(secret))
        async with world(right, tmp_path) as one, app(broker.port, username="edge", password="s3cret-word") as local:
            await local.publish(UPDATE, b"x")
            await until(lambda: one.twin, "it is let in")
        wrong = config(broker, mqtt_username="edge", mqtt_password="other-word")
        async with world(wrong, tmp_path, connect=False) as one:
            await until(lambda: "not authori" in one.events.trouble.lower(), "it is said why")
            assert "other-word" not in one.events.trouble


async def test_the_configured_client_ids_are_used(broker: Mosquitto, tmp_path: Path) -> None:
    own = config(broker, mqtt_sub_client_id="my-sub", mqtt_pub_client_id="my-pub")
    async with world(own, tmp_path):
        log = broker.log.read_text()
        assert "as my-sub" in log
        assert "as my-pub" in log


async def test_both_brokers_at_once(broker: Mosquitto, tmp_path: Path) -> None:
    """Mode 1: apps of both are heard and told, and one broker that dies costs the other nothing."""
    both = EventBusConfig(
        enable=True,
        mqtt_mode=1,
        mqtt_server_external=f"tcp://127.0.0.1:{broker.port}",
        mqtt_server_internal="tcp://127.0.0.1:0",
        mqtt_qos=1,
    )
    async with world(both, tmp_path) as one:
        assert one.events.internal_port is not None
        async with app(one.events.internal_port, "$hw/#") as inside:
            async with app(broker.port, "$hw/#") as outside:
                for local in (inside, outside):
                    await local.publish(UPDATE, {})
                await until(lambda: len(one.twin) == 2, "both are heard, once each")
                one.tell(f"{UPDATE}/document", b"1")
                for local in (inside, outside):
                    assert await local.hears(f"{UPDATE}/document") == b"1"
            await broker.stop(signal.SIGKILL)
            await until(lambda: one.events.trouble, "it is known")
            assert "external" in one.events.trouble
            assert [client.label for client in one.events._clients if client.is_up] == ["internal"]
            one.tell(f"{UPDATE}/document", b"2")
            await inside.hears(f"{UPDATE}/document", 2)
            await inside.publish(UPDATE, {})
            await until(lambda: len(one.twin) == 3, "and heard")
            await broker.start()
            await until(lambda: one.events.is_up and not one.events.trouble, "both again")
            assert len(one.twin) == 3
