"""Upstream's EdgeCore, played from a recording, at our cloud core: each answer has the shape that upstream's had."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.edgecontroller.kinds import CONFIG_MAPS, LEASES, NODES, PODS, SECRETS
from cloudcore.kube import Key, Kind, KubeError
from kubetwin.apiserver import ApiServer
from tests.cloudcore.join_world import token_of
from tests.cloudcore.support import Kubernetes, install_crds, open_client, until
from tests.cloudcore.test_cloudcore_process import cloudcore
from tests.compat.frames import CLOSE, CONTINUATION, TEXT
from tests.compat.recorded import NODE, Json, Line, differences, line, lines
from tests.compat.stock_edge import Pair, StockEdge, join, message, stock_edge, upgrade

STOCK = Path(__file__).parents[1] / "data" / "upstream-cloudcore.yaml"
API_SERVERS = frozenset(
    {"managedFields", "generation", "creationTimestamp", "ownerReferences", "taints", "qosClass", "lastProbeTime"}
)
"""What an API server and the controllers beside it fill in."""


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with ApiServer(tmp_path / "api") as api, await open_client(api) as client:
        await install_crds(client)
        yield client


class World:
    """A cloud core in a process of its own, with nothing but a cluster, and where it listens."""

    def __init__(self, kube: Kubernetes, hub: int, joins: int, tmp_path: Path) -> None:
        self.kube, self.hub, self.joins = kube, hub, joins
        self.pair = Pair(tmp_path, NODE)


def stock_file(directory: Path, kubeconfig: Path, **authorization: bool) -> Path:
    """Upstream's file, with this machine's paths and addresses and without fixed ports."""
    config = yaml.safe_load(STOCK.read_text())
    config["commonConfig"]["monitorServer"]["bindAddress"] = "127.0.0.1:0"
    config["kubeAPIConfig"]["kubeConfig"] = str(kubeconfig)
    hub = config["modules"]["cloudHub"]
    for name in ("tlsCAFile", "tlsCAKeyFile", "tlsCertFile", "tlsPrivateKeyFile"):
        hub[name] = str(directory / "none" / name)
    hub["advertiseAddress"] = ["127.0.0.1"]
    for name in ("websocket", "https"):
        hub[name].update(address="127.0.0.1", port=0)
    hub["authorization"].update(authorization)
    file = directory / "cloudcore.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
async def world(tmp_path: Path, kube: Kubernetes, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Upstream's file; a node's rights are checked unless the test asks for it as it is."""
    rights = {} if getattr(request, "param", "") == "as it is" else {"enable": True, "debug": False}
    async with cloudcore(stock_file(tmp_path, tmp_path / "api" / "kubeconfig", **rights)) as running:
        joins = int((await running.until_log(r"nodes join at https://127\.0\.0\.1:(\d+)"))[1])
        hub = int((await running.until_log(r"CloudHub listening on 127\.0\.0\.1:(\d+)"))[1])
        world = World(kube, hub, joins, tmp_path)
        await join(joins, await token_of(kube), world.pair)
        yield world
        await running.stop()
        assert running.process.returncode == 0
        assert "Traceback" not in running.log


def as_applied(content: Json) -> Json:
    """An object as somebody would apply it."""
    metadata = {k: v for k, v in content["metadata"].items() if k in ("name", "namespace", "labels", "annotations")}
    applied = {k: v for k, v in content.items() if k not in ("status", "metadata")}
    return {**applied, "metadata": metadata}


class Replay:
    """Goes through the recording line by line. `known`: ids that were recorded → those of this cluster."""

    def __init__(self, edge: StockEdge, kube: Kubernetes) -> None:
        self.edge, self.kube = edge, kube
        self.known: dict[str, str] = {}
        self.checked: list[int] = []
        self.wrong: list[str] = []

    def adapt(self, msg: Json) -> Json:
        """With this cluster's ids, and the version that a Lease was last seen with."""
        text = json.dumps(msg)
        for recorded, ours in self.known.items():
            for quote in ('"', '\\"'):  # bare, or in the text of a patch
                text = text.replace(f"{quote}{recorded}{quote}", f"{quote}{ours}{quote}")
        adapted: Json = json.loads(text)
        if msg["route"]["resource"].startswith("kube-node-lease/") and adapted["content"]:
            del adapted["content"]["metadata"]["ownerReferences"]  # a node that is none of this cluster's
        return adapted

    async def send(self, one: Line) -> None:
        sent = await self.edge.send(self.adapt(one.msg))
        self.known[one.msg["header"]["msg_id"]] = sent["header"]["msg_id"]

    async def expect(self, one: Line) -> None:
        try:
            got = await self.edge.next(one.route, parent=self.known.get(one.parent, ""))
        except TimeoutError:
            have = [(m["header"].get("parent_msg_id", ""), *m["route"].values()) for _, m in self.edge.received]
            raise AssertionError(f"{one} never came; there were {have}") from None
        self.checked.append(one.number)
        recorded = {**one.msg, **AS_STUB} if one.number == POD_DELETED else one.msg
        self.wrong += [f"{one}: {d}" for d in differences(recorded, got, without=API_SERVERS)]
        self._learn(one.msg["content"], got["content"])

    def _learn(self, recorded: Any, ours: Any) -> None:
        inner = (recorded.get("Object") or recorded) if isinstance(recorded, dict) else {}
        mine = (ours.get("Object") or ours) if isinstance(ours, dict) else {}
        for name in ("uid", "resourceVersion"):
            before, now = inner.get("metadata", {}).get(name), mine.get("metadata", {}).get(name)
            if before and now:
                self.known[str(before)] = str(now)


async def patch(kube: Kubernetes, kind: Kind, name: str, changed: Json) -> None:
    await kube.patch(kind, Key("default", name), changed)


def actions(kube: Kubernetes) -> dict[int, Callable[[], Awaitable[Any]]]:
    """What an operator did, before the line that it led to."""
    thermo = Key("default", "thermo-1")
    model, device = as_applied(line(22).msg["content"]), as_applied(line(24).msg["content"])

    async def both() -> None:
        await kube.create(MODELS, model)
        await kube.create(DEVICES, device)

    async def pod() -> None:
        await kube.create(CONFIG_MAPS, as_applied(line(41).msg["content"]))
        await kube.create(SECRETS, as_applied(line(44).msg["content"]))
        await kube.create(PODS, as_applied(line(34).msg["content"]))

    async def gone() -> None:
        await kube.delete(MODELS, Key("default", "thermo-model"))
        await kube.delete(DEVICES, thermo)

    return {
        21: both,
        32: lambda: patch(kube, DEVICES, "thermo-1", {"spec": line(32).msg["content"]["spec"]}),
        34: pod,
        49: lambda: patch(kube, CONFIG_MAPS, "cm1", {"data": line(49).msg["content"]["data"]}),
        54: gone,
    }


POD_DELETED = 53
_NAMED = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p1", "namespace": "default"}}
AS_STUB: Json = {"header": {"msg_id": "", "timestamp": 0}, "content": _NAMED}
"""A pod that is gone is named, and not sent whole a last time: the form in which upstream's SyncController deletes."""
NOT_SENT = {
    18: "a node is not told again what it has reported itself (contract 8.3 #12)",
    38: "as line 18, of a pod",
    47: "as line 18, of a pod",
}


async def test_the_recording_is_answered_as_it_was(world: World) -> None:
    kube = world.kube
    await kube.create(LEASES, as_applied(line(4).msg["content"]["Object"]))
    operators = actions(kube)
    async with stock_edge(world.hub, world.pair) as edge:
        replay = Replay(edge, kube)
        for one in lines():
            if one.number in operators:
                await operators[one.number]()
            if one.up and not one.parent:
                await replay.send(one)
            elif not one.up and one.number not in NOT_SENT:
                await replay.expect(one)
        assert not replay.wrong, "\n".join(replay.wrong)
        left = [m for _, m in edge.received if m["header"]["msg_id"] not in edge.taken]
        assert not [m["route"] for m in left if m["route"]["resource"] == f"null/node/{NODE}"], "see NOT_SENT"
        assert len(replay.checked) + len(NOT_SENT) == sum(not one.up for one in lines())
        assert all(f.opcode in (TEXT, CONTINUATION, CLOSE) and not f.masked for f in edge.frames)
        node = await kube.get(NODES, Key("", NODE))
        assert {c["type"] for c in node["status"]["conditions"]} >= {"Ready", "MemoryPressure"}
        assert node["metadata"]["labels"]["node-role.kubernetes.io/edge"] == ""
        lease = await kube.get(LEASES, Key("kube-node-lease", NODE))
        assert lease["spec"]["renewTime"] == line(16).msg["content"]["spec"]["renewTime"]
        with pytest.raises(KubeError):
            await kube.get(PODS, Key("default", "p1"))
        # All that was to be confirmed has been: nothing comes a second time.
        ids = [msg["header"]["msg_id"] for _, msg in edge.received]
        assert len(ids) == len(set(ids))
        recorded_acks = {one.route for one in lines() if one.up and one.parent}
        assert recorded_acks <= {tuple(ack["route"].values()) for ack in edge.sent_acks}


@pytest.mark.parametrize("world", ("as it is",), indirect=True)
async def test_recorded_reports_are_at_the_api_and_what_was_away_comes_again(world: World) -> None:
    kube = world.kube
    await kube.create(MODELS, as_applied(line(22).msg["content"]))
    await kube.create(DEVICES, as_applied(line(24).msg["content"]))
    async with stock_edge(world.hub, world.pair) as edge:
        for number in (2, 26, 27, 30):
            await edge.send(line(number).msg)
        status = await kube.until_status("thermo-1", lambda s: len(s.get("twins", ())) == 2 and s.get("state"))
        twins = {twin["propertyName"]: twin for twin in status["twins"]}
        assert twins["counter"]["reported"]["value"] == "2"
        assert twins["setpoint"]["observedDesired"]["value"] == twins["setpoint"]["reported"]["value"] == "21"
        assert (status["state"], status["lastOnlineTime"]) == ("ok", "2026-11-22T22:26:18Z")
    changed = line(32).msg["content"]["spec"]
    await kube.patch(DEVICES, Key("default", "thermo-1"), {"spec": changed})
    async with stock_edge(world.hub, world.pair) as edge:
        await edge.send(line(2).msg)
        while True:
            got = await edge.next(("devicecontroller", "resource", "update", "default/device/thermo-1"))
            desired = {p["name"]: p.get("desired", {}).get("value") for p in got["content"]["spec"]["properties"]}
            if desired["setpoint"] == "35":
                break


async def test_names_in_other_letters_and_messages_in_many_frames(world: World) -> None:
    async with stock_edge(world.hub, world.pair) as edge:
        # Big enough for twenty frames of 4 KiB.
        node = {**line(9).msg, "header": {"msg_id": "a-b-c", "timestamp": 1}}
        node["content"]["metadata"]["annotations"] = {"note": "<&>\u2028" + "n" * 80_000}
        await edge.send_bytes(json.dumps(node).encode())  # and no newline behind
        answer = await edge.next(("edgecontroller", "resource", "response", f"null/node/{NODE}"), parent="a-b-c")
        assert answer["content"]["Object"]["metadata"]["annotations"]["note"].startswith("<&>\u2028nnn")
        other = message("edged", "meta", "query", f"kube-node-lease/lease/{NODE}", None)
        shouted = {
            "HEADER": {"Msg_ID": "d-e-f", "TimeStamp": 1},
            "Route": {name.upper(): value for name, value in other["route"].items()},
            "CONTENT": None,
        }
        await edge.send_bytes(json.dumps(shouted).encode())
        query = ("edgecontroller", "resource", "response", f"kube-node-lease/lease/{NODE}")
        answer = await edge.next(query, parent="d-e-f")
        assert answer["content"]["Err"]["ErrStatus"]["code"] == 404  # never an empty Err: EdgeCore would end in a panic


def models(edge: StockEdge) -> list[tuple[float, Json]]:
    return [(at, m) for at, m in edge.received if m["route"]["resource"] == "default/devicemodel/thermo-model"]


@pytest.mark.slow
async def test_what_is_not_confirmed_comes_again_under_its_id(world: World) -> None:
    await world.kube.create(MODELS, as_applied(line(22).msg["content"]))
    await world.kube.create(DEVICES, as_applied(line(24).msg["content"]))
    async with stock_edge(world.hub, world.pair) as edge:
        edge.acknowledging = False
        await edge.send(line(2).msg)
        await until(lambda: len(models(edge)) > 1, what="the model again")
        (first, msg), (second, again), *_ = models(edge)
        assert again == msg, "the same bytes: id, time and all"
        assert second - first > 4


@pytest.mark.slow
async def test_an_upgrade_that_upstream_would_leave_hanging_is_answered(world: World) -> None:
    whole = [
        f"GET /p/{NODE}/events HTTP/1.1", "Host: h", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MWkm+sC3/e0Oghj1ultRhg==", f"node_id: {NODE}",
        "project_id: p", "ConnectionUse: msg",
    ]  # fmt: skip
    for name, instead in (("ConnectionUse", "ConnectionUse: str"), ("ConnectionUse", "X: y"), ("node_id", "X: y")):
        changed = [instead if one.startswith(name) else one for one in whole]
        first, _, reader, writer = await upgrade(world.hub, world.pair, changed)
        try:
            assert first.split()[1] in ("400", "403"), first
            async with asyncio.timeout(5):
                await reader.read()
        finally:
            writer.transport.abort()
