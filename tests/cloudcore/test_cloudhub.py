"""CloudHub: who is let in, takeover, keepalive, acknowledgements, and what is not served."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from cloudcore.cloudhub import HubSettings
from cloudcore.cloudhub.outbox import MAX_PLAIN, WINDOW
from cloudcore.cloudhub.rivals import MAX_NODES, Rivals
from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import Key
from cloudedge import ConnectionRefused, certificates, reply, tls
from cloudedge.dialling import connect
from tests.cloudcore.support import Cloud, Kubernetes, device, model, running_cloud, until

CAPTURES = Path(__file__).parents[1] / "data" / "captures" / "upstream-websocket.jsonl"


async def test_certificate_of_another_node_is_closed_and_named_on_the_change(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(node: str, certificate: str) -> None:
        connection = await cloud.dial(node, certificate=certificate)
        await asyncio.wait_for(connection.wait_closed(), 5)

    for _ in range(3):
        await refused("edge-2", "edge-1")
    assert cloud.hub.counts == {"refused: certificate": 3}
    assert not cloud.hub.nodes

    def warned() -> list[str]:
        hub = "cloudcore.cloudhub.hub"
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name == hub]

    text = "node 'edge-2' refused: the certificate is node edge-1's"
    assert warned() == [text]
    async with cloud.edge("edge-2"):
        pass
    await refused("edge-2", "edge-1")
    assert warned() == [text, text]


async def test_certificate_of_no_node_is_closed(cloud: Cloud) -> None:
    with pytest.raises(ConnectionRefused):  # it is for servers, so TLS refuses it already
        await cloud.dial("edge-2", certificate="server")
    assert not cloud.hub.nodes


async def test_certificate_of_another_authority_is_refused(cloud: Cloud, tmp_path: Path, certs: Path) -> None:
    certificates.mint(tmp_path, nodes=["edge-1"], names=[])
    context = tls.client_context(
        ca_file=certs / "ca.crt", cert_file=tmp_path / "edge-1.crt", key_file=tmp_path / "edge-1.key"
    )
    with pytest.raises(ConnectionRefused):
        await connect(f"wss://127.0.0.1:{cloud.hub.port}", node="edge-1", ssl_context=context)
    assert not cloud.hub.nodes


@pytest.mark.parametrize("node", ("", "Edge", "a/b", "-a", "a..b", "a.-b", "x" * 300))
async def test_names_that_are_none(cloud: Cloud, node: str) -> None:
    with pytest.raises(ConnectionRefused, match="400"):
        await cloud.dial(node, certificate="edge-1")


async def test_node_limit(kube: Kubernetes, certs: Path) -> None:
    settings = HubSettings(host="127.0.0.1", port=0, node_limit=1)
    async with running_cloud(kube, certs, hub=settings) as cloud, cloud.edge("edge-1"):
        with pytest.raises(ConnectionRefused, match="503 'node edge-2: the limit of 1 nodes is reached'"):
            await cloud.dial("edge-2")
        async with cloud.edge("edge-1"):  # a takeover is no further node
            assert cloud.hub.nodes == {"edge-1"}


async def test_takeover_by_a_second_connection(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    async with cloud.edge() as old, cloud.edge() as new:
        await asyncio.wait_for(old.connection.wait_closed(), 5)
        await kube.create(DEVICES, device())
        await until(lambda: new.objects("thermo-1"))
        assert not old.objects("thermo-1")
        assert cloud.hub.nodes == {"edge-1"}
        await new.answer(await new.report("thermo-1", {"valve": 5}))


async def test_two_machines_with_one_name_are_spoken_of_once(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> int:
        return sum("do two machines have this name" in record.message for record in caplog.records)

    async with contextlib.AsyncExitStack() as around:
        edges = [await around.enter_async_context(cloud.edge())]
        for takeovers in range(1, 8):
            edges.append(await around.enter_async_context(cloud.edge()))
            await asyncio.wait_for(edges[-2].connection.wait_closed(), 5)
            assert said() == (takeovers >= 4)


def test_takeovers_long_apart_are_no_sign_of_a_second_machine() -> None:
    rivals = Rivals()
    assert not any(rivals.suspect("edge-1", 210.0 * number) for number in range(50))
    for number in range(2 * MAX_NODES):
        rivals.suspect(f"edge-{number}", 0.0)
    assert len(rivals._nodes) == MAX_NODES


async def test_a_node_whose_session_cannot_begin_is_not_left_hanging(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise RuntimeError("as a bug would")

    with monkeypatch.context() as broken:
        broken.setattr(cloud.controller, "node_connected", failing)
        connection = await cloud.dial("edge-1")
        await asyncio.wait_for(connection.wait_closed(), 5)
    assert not cloud.hub.nodes
    async with cloud.edge("edge-1"):
        assert cloud.hub.nodes == {"edge-1"}


async def test_silent_node_is_closed_though_it_sends_other_things(kube: Kubernetes, certs: Path) -> None:
    settings = HubSettings(host="127.0.0.1", port=0, keepalive_s=1.0)
    async with running_cloud(kube, certs, hub=settings) as cloud, cloud.edge() as edge:
        for _ in range(6):  # longer in all than a node may be silent
            await edge.keep_alive()
            await asyncio.sleep(0.25)
        assert cloud.hub.nodes
        loop = asyncio.get_running_loop()
        start = loop.time()
        while cloud.hub.nodes:
            if not edge.connection.is_closed:
                await edge.report("x", {})
            assert loop.time() - start < 5
            await asyncio.sleep(0.02)
        assert loop.time() - start > 0.5


async def test_unacknowledged_object_is_sent_again_under_its_id(kube: Kubernetes, certs: Path) -> None:
    async with running_cloud(kube, certs) as cloud, cloud.edge() as edge:
        edge.acknowledging = False
        session = cloud.hub._sessions["edge-1"]
        session.outbox._resend_s = 0.2
        await kube.create(MODELS, model())
        await kube.create(DEVICES, device())
        await until(lambda: len(edge.objects("thermo-1")) >= 2)
        first, second = edge.objects("thermo-1")[:2]
        assert first == second
        change = {"spec": {"properties": [{"name": "valve", "desired": {"value": "9"}}]}}
        await kube.patch(DEVICES, Key("default", "thermo-1"), change)
        await until(lambda: edge.objects("thermo-1")[-1].id != first.id)
        edge.acknowledging = True
        await until(lambda: len(session.outbox) == 0)
        assert edge.objects("thermo-1")[-1].data()["spec"]["properties"][0]["desired"]["value"] == "9"


async def test_every_recorded_message_of_an_edge_is_survived_and_queries_are_answered(cloud: Cloud) -> None:
    recorded = [json.loads(line) for line in CAPTURES.read_text().splitlines()]
    async with cloud.edge() as edge:
        sent = []
        for line in recorded:
            if line["dir"] != "edge->cloud":
                continue
            route, header = line["msg"]["route"], line["msg"]["header"]
            parent = header.get("parent_msg_id", "")
            sent.append(await edge.send(**route, content=line["msg"]["content"], parent=parent))
        for message in sent:
            if message.route.group == "meta" and message.route.operation != "response":
                answer = await edge.answer(message)
                assert (answer.route.operation, answer.route.group) == ("error", "resource")
                assert answer.route.resource == message.route.resource
            elif message.route.source == "twin":
                assert (await edge.answer(message)).is_ok
        assert cloud.hub.counts["not served yet: edged query configmap"] == 1
        assert cloud.hub.nodes == {"edge-1"}


async def test_odd_messages_are_dropped_and_the_session_goes_on(cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        for source, group, operation, resource in (
            ("devicecontroller", "resource", "update", "device/default/d/twin/edge_updated"),
            ("", "", "", ""),
            ("bus", "user", "upload", "$hw/x"),
            ("metaserver", "dynamiccontroller", "null", "null"),
            ("x", "y", "error", "a/b/c"),
            ("x", "y", "response", "a/b/c"),
            ("edged", "meta", "insert", "default/event/e"),
        ):
            message = await edge.send(source=source, group=group, operation=operation, resource=resource)
        fence = await edge.ask_membership()
        await edge.answer(fence)
        assert not edge.answers(message)
        assert cloud.hub.counts["claims to be from the cloud: devicecontroller update default"] == 1


async def test_kinds_that_nodes_invent_are_bounded(cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        for number in range(400):
            await edge.send(source=f"s{number}", group="g", operation="o", resource="r")
        await edge.answer(await edge.ask_membership())
        assert len(cloud.hub.counts) <= 257
        assert sum(cloud.hub.counts.values()) == 400


async def test_node_that_does_not_acknowledge_holds_up_only_itself(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    async with cloud.edge("edge-1") as slow, cloud.edge("edge-2") as quick:
        slow.acknowledging = False
        for number in range(50):
            await kube.create(DEVICES, device(f"slow-{number}"))
            await kube.create(DEVICES, device(f"quick-{number}", nodeName="edge-2"))
        await until(lambda: quick.objects("quick-49"))
        await until(lambda: cloud.controller.devices.get(Key("default", "slow-49")))
        sent = [m for m in slow.received if m.route.group == "resource" and not m.header.parent_msg_id]
        assert len(sent) <= WINDOW
        slow.acknowledging = True
        for message in sent:
            await slow.connection.send(reply(message, source="meta", group="twin"))
        await until(lambda: slow.objects("slow-49"))


async def test_node_that_does_not_read_is_closed_and_holds_up_only_itself(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    settings = HubSettings(host="127.0.0.1", port=0, write_timeout_s=0.3)
    big = {"protocolName": "modbus", "configData": {"text": "x" * 900_000}}
    async with running_cloud(kube, certs, hub=settings) as cloud, cloud.edge("edge-1") as stuck:
        transport = stuck.connection._transport
        assert transport is not None
        transport.underlying_transport.pause_reading()
        async with cloud.edge("edge-2") as quick:
            for number in range(16):
                await kube.create(DEVICES, device(f"big-{number}", protocol=big))
            await kube.create(DEVICES, device("quick", nodeName="edge-2"))
            await until(lambda: quick.objects("quick"))
            await until(lambda: cloud.hub.nodes == {"edge-2"})
        transport.underlying_transport.resume_reading()


async def test_node_that_asks_without_reading_the_answers_is_closed(cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        session = cloud.hub._sessions["edge-1"]
        message = edge.received[0]
        for _ in range(MAX_PLAIN + 1):
            session.post(message)
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
        assert not cloud.hub.nodes
