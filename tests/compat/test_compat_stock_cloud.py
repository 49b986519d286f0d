"""Upstream's CloudCore, played from a recording, at our edge core, which runs as a process from upstream's file."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from cloudedge.certificates import mint
from cloudedge.message import now_ms
from dmi import Device, DeviceId, Reported, Twin
from tests.compat.frames import CONTINUATION, TEXT, go_json
from tests.compat.recorded import Json, differences, handshake, line, route
from tests.compat.stock_cloud import StockCloud
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.peers import FakeMapper, desired_twin

STOCK = Path(__file__).parents[1] / "data" / "upstream-edgecore.yaml"
NODE = "edge-1"
DEVICE = "device/default/thermo-1"
OPTIONAL = frozenset(
    {
        "creationTimestamp",
        "expected_version",
        "actual_version",
        "annotations",
        "daemonEndpoints",
        "hugepages-1Gi",
        "hugepages-2Mi",
    }
)
"""What a node says of itself that runs pods, and the twin's versions, which upstream's cloud does not read."""


def stock_file(directory: Path, certs: Path, port: int, **hub: object) -> Path:
    """Upstream's file, with this machine's paths and addresses."""
    config = yaml.safe_load(STOCK.read_text())
    modules = config["modules"]
    config["database"]["dataSource"] = str(directory / "edgecore.db")
    modules["deviceTwin"]["dmiSockPath"] = str(directory)
    modules["edgeHub"].update(
        tlsCaFile=str(certs / "ca.crt"),
        tlsCertFile=str(certs / f"{NODE}.crt"),
        tlsPrivateKeyFile=str(certs / f"{NODE}.key"),
        **hub,
    )
    modules["edgeHub"]["websocket"]["server"] = f"127.0.0.1:{port}"
    file = directory / "edgecore.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


class Joined:
    def __init__(self, cloud: StockCloud, mapper: FakeMapper, process: EdgeProcess) -> None:
        self.cloud, self.mapper, self.process = cloud, mapper, process

    async def give_device(self) -> None:
        """Membership, model and device, as they were recorded."""
        cloud = self.cloud
        await cloud.write(cloud.adapted(21))
        ids = [await cloud.send(cloud.adapted(number)) for number in (22, 24)]
        await cloud.confirmed(*ids)
        await self.mapper.until_device("thermo-1")


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Joined]:
    mint(certs := tmp_path / "certs", nodes=[NODE], names=["127.0.0.1"])
    async with StockCloud(certs, NODE) as cloud:
        process = EdgeProcess(stock_file(tmp_path, certs, cloud.port))
        await process.start()
        protocol = line(24).msg["content"]["spec"]["protocol"]["protocolName"]
        try:
            async with FakeMapper(tmp_path, protocol=protocol).running() as mapper:
                yield Joined(cloud, mapper, process)
        finally:
            code = await process.end(signal.SIGTERM)
        assert code == 0, process.log
        assert not [text for text in process.log if "Traceback" in text]


async def test_a_node_joins_takes_its_devices_and_reports(joined: Joined) -> None:
    cloud, mapper = joined.cloud, joined.mapper
    await cloud.first("patch", f"null/nodepatch/{NODE}")
    # The upgrade, the first words, the node.
    (request, headers), recorded = cloud.requests[0], handshake()
    assert request == f"GET {recorded['path'].replace('edge1', NODE)} HTTP/1.1"
    named = {name.lower(): value for name, value in headers}
    assert (named["node_id"], named["connectionuse"]) == (NODE, "msg")
    assert named["project_id"] == recorded["headers"]["project_id"]
    assert "origin" not in named
    assert "sec-websocket-extensions" not in named
    assert route(cloud.received[0][1]) == route(line(1).msg), "a keepalive is first"
    wrong: list[str] = []
    for number in (1, 2, 9):
        (_, _, operation, resource), one = line(number).route, line(number).msg
        ours = await cloud.first(operation, resource.replace("edge1", NODE))
        assert list(route(ours))[:2] == list(route(one))[:2]
        if number == 2:  # text of JSON, both
            one, ours = json.loads(one["content"]), json.loads(ours["content"])
        wrong += [f"line {number}: {d}" for d in differences(one, ours, without=OPTIONAL)]
    labels = (await cloud.first("insert", f"null/node/{NODE}"))["content"]["metadata"]["labels"]
    assert labels["node-role.kubernetes.io/edge"] == labels["node-role.kubernetes.io/agent"] == ""
    patched = json.loads((await cloud.first("patch", f"null/nodepatch/{NODE}"))["content"])
    assert {c["type"]: c["status"] for c in patched["status"]["conditions"]}["Ready"] == "True"
    lease = await cloud.until(lambda: leases(cloud), "a lease")
    assert route(lease[0])[:2] == ("edged", "meta")
    # Its devices, and what they say.
    await joined.give_device()
    counter = Twin("counter", reported=Reported(value="2", type="string", collected_ms=now_ms()))
    await mapper.client.report_twins(DeviceId("default/thermo-1"), [counter, desired_twin("setpoint", "21")])
    report = await cloud.first("update", f"{DEVICE}/twin/edge_updated")
    assert route(report) == route(line(26).msg)
    twins = report["content"]["twin"]
    for name, number in (("counter", 26), ("setpoint", 27)):
        if name in twins:
            before = line(number).msg["content"]["twin"][name]
            wrong += [f"{name}: {d}" for d in differences(before, twins[name], without=OPTIONAL)]
            assert twins[name]["actual"]["value"] == before["actual"]["value"]
            as_go_reads(twins[name])
    assert not wrong, "\n".join(wrong)
    # A change, under the other source that upstream's SyncController gives it (contract 8.1 #8).
    changed = cloud.adapted(32)
    changed["route"]["source"] = "edgecontroller"
    await cloud.confirmed(await cloud.send(changed))
    await mapper.until_device("thermo-1", lambda d: desired(d) == "35")
    # And the end of it.
    await cloud.confirmed(*[await cloud.send(cloud.adapted(number)) for number in (54, 57)])
    await cloud.write(cloud.adapted(55))
    await mapper.until(lambda: not mapper.devices, "the device is gone")
    assert set(cloud.sent.values()) == {1}, "all was confirmed at the first time"
    assert all(f.masked for f in cloud.frames)
    acks = [m for _, m in cloud.received if m["header"].get("parent_msg_id") in cloud.sent]
    assert {m["content"] for m in acks} == {"OK"}
    assert {m["route"]["operation"] for m in acks} == {"response"}


def desired(device: Device) -> str:
    setpoint = device.find("setpoint")
    assert setpoint is not None
    return setpoint.desired.value if setpoint.desired else ""


def leases(cloud: StockCloud) -> list[Json]:
    return [m for _, m in cloud.received if m["route"]["resource"] == f"kube-node-lease/lease/{NODE}"]


def as_go_reads(twin: Json) -> None:
    """Types that upstream's structs take: a Go decoder refuses the message as a whole for one of another."""
    assert set(twin) <= {"expected", "actual", "optional", "metadata", "expected_version", "actual_version"}
    for side in ("expected", "actual"):
        if side in twin:
            metadata = twin[side].get("metadata", {})
            assert isinstance(twin[side].get("value", ""), str)
            assert isinstance(metadata.get("timestamp", 0), int)
    assert isinstance(twin["metadata"]["type"], str)


async def test_large_messages_empty_frames_and_names_in_other_letters(joined: Joined) -> None:
    cloud, mapper = joined.cloud, joined.mapper
    await cloud.first("patch", f"null/nodepatch/{NODE}")
    sizes = {}
    for number, filler in ((22, 4000), (24, 300_000)):
        msg = cloud.adapted(number)
        msg["content"]["metadata"]["annotations"] = {"note": "<&>" + "n" * filler}
        sizes[await cloud.send(msg)] = len(go_json(msg))
    assert sorted(size > 8192 for size in sizes.values()) == [False, True], "one of several frames, one with an empty"
    await cloud.confirmed(*sizes)
    await mapper.until_device("thermo-1")
    other = cloud.adapted(32)
    shouted = {name.upper(): other[name] for name in other}
    shouted["HEADER"] = {name.title(): value for name, value in other["header"].items()}
    shouted["ROUTE"] = {name.title(): value for name, value in other["route"].items()}
    await cloud.confirmed(await cloud.send(other, encoded=json.dumps(shouted).encode()))
    await mapper.until_device("thermo-1", lambda d: desired(d) == "35")
    assert set(cloud.sent.values()) == {1}
    assert {f.opcode for f in cloud.frames} <= {TEXT, CONTINUATION, 0x8, 0x9, 0xA}


async def test_a_socket_that_is_closed_without_a_word_is_dialled_again(joined: Joined) -> None:
    """What the cloud did not have by then comes with the next connection; what came twice is taken once."""
    cloud, mapper = joined.cloud, joined.mapper
    await joined.give_device()
    calls = len(mapper.calls)
    cloud.drop()
    await mapper.report("default/thermo-1", setpoint="17")
    await cloud.until(lambda: len(cloud.requests) == 2, "a second connection")
    await cloud.until(lambda: "17" in told_setpoints(cloud), "the value of the time between")
    await cloud.first("get", "membership/detail", 1)
    again = cloud.adapted(24)
    again["route"]["operation"] = "update"
    await cloud.confirmed(*[await cloud.send(again) for _ in range(2)])
    assert len(mapper.calls) == calls, "the same version is nothing new"


def told_setpoints(cloud: StockCloud) -> set[str]:
    reports = cloud.of("update", f"{DEVICE}/twin/edge_updated")
    return {r["content"]["twin"].get("setpoint", {}).get("actual", {}).get("value", "") for r in reports}


@pytest.mark.slow
async def test_an_acknowledgement_that_was_lost_is_given_again(joined: Joined) -> None:
    cloud, mapper = joined.cloud, joined.mapper
    await joined.give_device()
    cloud.losing_acks = 1
    id_ = await cloud.send(cloud.adapted(32))
    await cloud.confirmed(id_)
    assert cloud.sent[id_] == 2
    await mapper.until_device("thermo-1", lambda d: desired(d) == "35")
    # A cloud that answers no keepalive and no upload is a healthy one: the link stays, keepalives go on.
    await cloud.first("keepalive", "node", 1)
    assert len(cloud.requests) == 1


async def test_a_failure_is_not_taken_for_a_node(tmp_path: Path) -> None:
    """`ErrStatus` where the object should be: it is asked for again, and said (contract 1.2, 8.1 #14)."""
    mint(certs := tmp_path / "certs", nodes=[NODE], names=["127.0.0.1"])
    async with StockCloud(certs, NODE) as cloud:
        cloud.answering = False
        process = EdgeProcess(stock_file(tmp_path, certs, cloud.port))
        await process.start()
        try:
            asked = await cloud.first("insert", f"null/node/{NODE}")
            answer = cloud.adapted(10)
            answer["header"]["parent_msg_id"] = asked["header"]["msg_id"]
            refusal = {"kind": "Status", "status": "Failure", "message": "quota of nodes", "code": 403}
            answer["content"] = {"Object": None, "Err": {"ErrStatus": refusal}}
            await cloud.write(answer)
            async with asyncio.timeout(15):
                while not any("quota of nodes" in text for text in process.log):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.05)
            assert not cloud.of("patch", f"null/nodepatch/{NODE}")
            assert any("MQTT" in text for text in process.log), "the file asks for a broker, and there is none"
            cloud.answering = True
            await cloud.first("patch", f"null/nodepatch/{NODE}")
        finally:
            await process.end(signal.SIGTERM)
