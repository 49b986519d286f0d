"""Sinks against the real servers: mosquitto, Redis and MariaDB from Debian, each stopped and started in between."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import redis.asyncio
import trustme

from dmi.types import DeviceId
from mappers.sdk.samples import Sample
from mappers.sdk.sinks import sink as sink_module
from mappers.sdk.sinks.clients import local_time
from tests.mappers.sink_world import T0_MS, Server, device, free_port, plane, program, running, sample, until

pytestmark = pytest.mark.programs

PASSWORD = "s3cret-word"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.05, 0.3))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Server]:
    """With a user, and what it is told kept for a client that was away."""
    mosquitto, passwd = program("mosquitto"), program("mosquitto_passwd")
    port = free_port()
    users, config = tmp_path / "users", tmp_path / "mosquitto.conf"
    await _completed(passwd, "-c", "-b", str(users), "mapper", PASSWORD)
    config.write_text(f"listener {port} 127.0.0.1\npassword_file {users}\nallow_anonymous false\nuser root\n")
    async with running(Server(port, mosquitto, "-c", str(config), log=tmp_path / "mosquitto.log")) as server:
        yield server


@pytest.mark.parametrize("scheme", ("tls", "mqtts", "ws", "unix"))
async def test_mqtt_over_other_transports(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    plain, config = free_port(), tmp_path / "mosquitto.conf"
    lines = [f"listener {plain} 127.0.0.1"]
    match scheme:
        case "unix":
            lines, address = [*lines, f"listener 0 {tmp_path}/broker.sock"], f"unix://{tmp_path}/broker.sock"
        case "ws":
            lines, address = [*lines, f"listener {port} 127.0.0.1", "protocol websockets"], f"ws://localhost:{port}"
        case _:
            lines += [f"listener {port} 127.0.0.1", f"certfile {tmp_path}/server.pem", f"keyfile {tmp_path}/server.pem"]
            address = f"{scheme}://localhost:{port}"
    config.write_text("\n".join([*lines, "allow_anonymous true", "user root", ""]))
    server = Server(plain, program("mosquitto"), "-c", str(config), log=tmp_path / "mosquitto.log")
    async with running(server), plane(tmp_path / "data") as data:
        assert not data.declare(device({"mqtt": {"address": address, "topic": "t", "qos": 1}}))
        if scheme in ("tls", "mqtts"):
            data.put(sample(1))
            await until(lambda: "certificate verify failed" in data.stats()[0].problem, "an unknown CA is not trusted")
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        else:
            data.put(sample(1))
        await until(lambda: data.stats()[0].sent == 1, "it is confirmed")


@pytest.mark.parametrize("scheme", ("tcp", "mqtt"))
async def test_mqtt_over_a_kept_connection_and_through_a_cut(broker: Server, tmp_path: Path, scheme: str) -> None:
    push = {"mqtt": {"address": f"{scheme}://127.0.0.1:{broker.port}", "topic": "plant/flow", "qos": 1}}
    environ = {"MQTT_USERNAME": "mapper", "MQTT_PASSWORD": PASSWORD, "PASSWORD": "for the database"}
    async with plane(tmp_path / "data", environ) as data:
        assert data.declare(device(push)) == []
        async with _subscribed(broker) as got:
            for number in range(100):
                data.put(sample(number))
            await until(lambda: len(got) == 100, "all arrive")
            assert got == [f"time is {local_time(T0_MS + n * 1000)}  plant/flow: {n}" for n in range(100)]
        assert (tmp_path / "mosquitto.log").read_text().count("New client connected") == 2, "one of them is the test's"
        await broker.stop()
        for number in range(100, 400):
            data.put(sample(number))
        await until(lambda: data.stats()[0].file, "samples wait on disk")
        await broker.start()
        async with _subscribed(broker) as got:
            await until(lambda: data.stats()[0].sent >= 400, "all are sent")
        assert data.stats()[0].dropped == {}


async def test_mqtt_of_qos_0_counts_what_a_broker_that_permits_nothing_else_has_read(tmp_path: Path) -> None:
    """The question that confirms such messages needs no permission."""
    port, config, rights = free_port(), tmp_path / "mosquitto.conf", tmp_path / "rights"
    rights.write_text("topic write plant/flow\n")
    rights.chmod(0o600)
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nacl_file {rights}\nlog_type all\n")
    server = Server(port, program("mosquitto"), "-c", str(config), log=tmp_path / "mosquitto.log")
    async with running(server), plane(tmp_path / "data") as data:
        assert not data.declare(device({"mqtt": {"address": f"tcp://127.0.0.1:{port}", "topic": "plant/flow"}}))
        for number in range(100):
            data.put(sample(number))
        await until(lambda: data.stats()[0].sent == 100, "all are confirmed")
        assert (tmp_path / "mosquitto.log").read_text().count("Received PUBLISH") == 100
        assert data.stats()[0].failed == 0


async def test_mqtt_broker_that_restarted_while_nothing_was_sent_is_no_reason_to_use_the_disk(
    broker: Server, tmp_path: Path
) -> None:
    push = {"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t", "qos": 1}}
    async with plane(tmp_path / "data", {"MQTT_USERNAME": "mapper", "MQTT_PASSWORD": PASSWORD}) as data:
        data.declare(device(push))
        data.put(sample(1))
        await until(lambda: data.stats()[0].sent == 1, "the first is sent")
        await broker.stop()
        await broker.start()
        data.put(sample(2))
        await until(lambda: data.stats()[0].sent == 2, "the second is sent on a new connection")
        assert not (tmp_path / "data").exists()


async def test_mqtt_retains_what_it_is_told_to(broker: Server, tmp_path: Path) -> None:
    push = {"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t", "qos": 2, "retained": True}}
    async with plane(tmp_path / "data", {"MQTT_USERNAME": "mapper", "MQTT_PASSWORD": PASSWORD}) as data:
        data.declare(device(push))
        data.put(sample(7))
        await until(lambda: data.stats()[0].sent == 1, "it is sent")
        async with _subscribed(broker) as got:
            await until(lambda: got, "a client that comes later gets it")
        assert got[0].endswith("t: 7")


async def test_mqtt_with_a_wrong_password_waits_for_the_right_one(
    broker: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "MQTT_USERNAME").write_text("mapper\n")
    (secrets / "MQTT_PASSWORD").write_text("wrong-word")
    push = {"mqtt": {"address": f"tcp://127.0.0.1:{broker.port}", "topic": "t"}}
    async with plane(tmp_path / "data", secrets_dir=str(secrets)) as data:
        data.declare(device(push))
        data.put(sample(1))
        await until(lambda: not data.stats()[0].up, "it is not let in")
        (secrets / "MQTT_PASSWORD").write_text(PASSWORD + "\n")
        await until(lambda: data.stats()[0].sent == 1, "it is let in")
        assert "wrong-word" not in caplog.text + repr(data.stats())


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[Server]:
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
    command += ["--dir", str(tmp_path), "--appendonly", "yes", "--appendfsync", "always"]
    async with running(Server(port, *command, log=tmp_path / "redis.log")) as server:
        yield server


async def test_redis_holds_a_sorted_set_per_device_through_a_cut(redis_server: Server, tmp_path: Path) -> None:
    push = {"dbMethod": {"redis": {"redisClientConfig": {"addr": f"127.0.0.1:{redis_server.port}", "db": 1}}}}
    async with plane(tmp_path / "data", {"PASSWORD": PASSWORD}) as data:
        assert data.declare(device(push)) == []
        data.put(sample(0, value="5 & <6>"))
        await until(lambda: data.stats()[0].sent == 1, "the first arrives")
        await redis_server.stop()
        for number in range(1, 2000):
            data.put(sample(number))
        await until(lambda: data.stats()[0].file, "samples wait on disk")
        await redis_server.start()
        await until(lambda: data.stats()[0].waiting == 0, "all arrive")
        client = redis.asyncio.Redis(port=redis_server.port, db=1, password=PASSWORD)
        try:
            rows = await client.zrange("meter-1", 0, -1, withscores=True)
        finally:
            await client.aclose()
    assert len(rows) == 2000, "a sample sent twice is there once"
    assert rows[0] == (
        b'{"DeviceName":"meter-1","PropertyName":"flow","Namespace":"plant","Value":"5 \\u0026 \\u003c6\\u003e",'
        b'"Type":"float","TimeStamp":%d}' % T0_MS,
        float(T0_MS),
    )


async def test_redis_refuses_one_key_and_takes_the_others(redis_server: Server, tmp_path: Path) -> None:
    push = {"dbMethod": {"redis": {"redisClientConfig": {"addr": f"127.0.0.1:{redis_server.port}"}}}}
    client = redis.asyncio.Redis(port=redis_server.port, password=PASSWORD)
    try:
        await client.set("meter-1", "not a sorted set")
    finally:
        await client.aclose()
    async with plane(tmp_path / "data", {"REDIS_PASSWORD": PASSWORD, "PASSWORD": "another"}) as data:
        data.declare(device(push))
        data.declare(device(push, name="meter-2"))
        data.put(sample(1))
        data.put(Sample(DeviceId("plant/meter-2"), "flow", "2", "float", T0_MS))
        await until(lambda: data.stats()[0].sent == 1, "the other arrives")
        assert data.stats()[0].dropped == {"rejected": 1}


@pytest.fixture
async def mariadb(tmp_path: Path) -> AsyncIterator[Server]:
    mariadbd, install = program("mariadbd"), program("mariadb-install-db")
    folder, port = tmp_path / "db", free_port()
    init = tmp_path / "init.sql"
    init.write_text(
        "CREATE DATABASE IF NOT EXISTS plant CHARACTER SET utf8mb4;\n"
        f"CREATE USER IF NOT EXISTS mapper@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
        "GRANT ALL ON plant.* TO mapper@'127.0.0.1';\nFLUSH PRIVILEGES;\n"
    )
    await _completed(
        install, "--no-defaults", f"--datadir={folder}", "--auth-root-authentication-method=normal", "--skip-test-db",
        "--user=root",
    )  # fmt: skip
    command = [
        mariadbd, "--no-defaults", f"--datadir={folder}", f"--port={port}", "--bind-address=127.0.0.1", "--user=root",
        f"--socket={tmp_path}/db.sock", f"--init-file={init}", f"--pid-file={tmp_path}/db.pid",
        "--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--skip-name-resolve",
    ]  # fmt: skip
    async with running(Server(port, *command, log=tmp_path / "mariadb.log")) as server:
        yield server


@pytest.mark.timeout(120)
async def test_mysql_has_a_table_per_property_through_a_cut_and_a_dropped_table(
    mariadb: Server, tmp_path: Path
) -> None:
    client = {"addr": f"127.0.0.1:{mariadb.port}", "database": "plant", "userName": "mapper"}
    push = {"dbMethod": {"mysql": {"mysqlClientConfig": client}}}
    awkward = "set`point-%s"
    async with plane(tmp_path / "data", {"PASSWORD": PASSWORD}) as data:
        assert data.declare(device(push)) == []
        assert data.declare(device(push, name="meter-2", prop=awkward)) == []
        data.put(sample(0, value="it's \\ 5'); DROP TABLE x; -- ☃"))
        data.put(Sample(DeviceId("plant/meter-2"), awkward, "1", "float", T0_MS))
        await until(lambda: data.stats()[0].sent == 2, "the first arrive", within_s=40)
        assert await _rows(mariadb, "SELECT ts, field FROM `plant/meter-1/flow`") == [
            (local_time(T0_MS), "it's \\ 5'); DROP TABLE x; -- ☃")
        ]
        assert await _rows(mariadb, "SELECT ts, field FROM `plant/meter-2/set``point-%s`") == [(local_time(T0_MS), "1")]

        await mariadb.stop()
        for number in range(1, 1500):
            data.put(sample(number))
        await until(lambda: data.stats()[0].file, "samples wait on disk")
        await mariadb.start()
        await until(lambda: data.stats()[0].waiting == 0, "all arrive", within_s=40)
        rows = await _rows(mariadb, "SELECT ts, field FROM `plant/meter-1/flow` ORDER BY id")
        assert {field for _, field in rows[1:]} == {str(n) for n in range(1, 1500)}

        data.put(sample(1, value="x" * 70_000))  # beyond TEXT
        data.put(sample(2000))
        await until(lambda: data.stats()[0].dropped == {"rejected": 1}, "what no column holds is refused")
        await _rows(mariadb, "DROP TABLE `plant/meter-1/flow`")
        data.put(sample(3000))
        await until(lambda: data.stats()[0].waiting == 0, "the table is made again")
        assert [f for _, f in await _rows(mariadb, "SELECT ts, field FROM `plant/meter-1/flow`")][-1] == "3000"


async def _completed(*command: str) -> None:
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=nowhere, stderr=nowhere)
    assert await process.wait() == 0, command[0]


async def _rows(server: Server, statement: str) -> list[tuple[str, Any]]:
    aiomysql = importlib.import_module("aiomysql")  # it comes without types
    connection = await aiomysql.connect(
        host="127.0.0.1", port=server.port, user="mapper", password=PASSWORD, db="plant", autocommit=True,
        charset="utf8mb4",
    )  # fmt: skip
    try:
        async with connection.cursor() as cursor:
            await cursor.execute(statement)
            return [(str(first), second) for first, second in await cursor.fetchall()]
    finally:
        connection.close()


class _subscribed:  # noqa: N801  # reads as one
    """The payloads of every message while the context lasts."""

    def __init__(self, broker: Server) -> None:
        self._client = aiomqtt.Client("127.0.0.1", broker.port, username="mapper", password=PASSWORD)
        self._task: asyncio.Task[None] | None = None
        self.got: list[str] = []

    async def __aenter__(self) -> list[str]:
        await self._client.__aenter__()
        await self._client.subscribe("#", qos=1)
        self._task = asyncio.create_task(self._listen())
        return self.got

    async def _listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            self.got.append(message.payload.decode())

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.__aexit__(None, None, None)
