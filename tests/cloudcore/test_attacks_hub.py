"""A node with a good certificate and bad intentions, at the hub and the device controller."""

import asyncio
import hashlib
import io
import ipaddress
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Raw

from cloudcore.cloudhub.outbox import MAX_BYTES, OVERHEAD, Outbox
from cloudcore.cloudhub.ports import SoleOwner
from cloudcore.cloudhub.upgrade import node_of_upgrade, wrong_with
from cloudcore.devicecontroller import budget, downstream
from cloudcore.devicecontroller.budget import BURST, RATE, REQUEST, Budget
from cloudcore.devicecontroller.kinds import DEVICES
from cloudcore.devicecontroller.queries import MAX_DEPTH, _is_deep
from cloudcore.devicecontroller.reports import (
    MAX_PROPERTIES,
    MAX_REPORT_BYTES,
    read_state_report,
    read_twin_report,
)
from cloudcore.joining import Revocations, RevocationsFirst
from cloudcore.joining.service import BAD_TOKENS
from cloudcore.kube import Key
from cloudedge import MalformedMessage, Message, new_message
from cloudedge.certificates import create_ca
from cloudedge.inventory import MAX_OBJECTS, read_inventory
from cloudedge.listening import Refusal
from cloudedge.signing import RequestRefused, sign_request
from dmi.log_lines import OneLine
from tests.cloudcore.join_world import REVOKED, joining_cloud, revoke
from tests.cloudcore.support import Cloud, Kubernetes, device, until
from tests.cloudcore.sync_support import ask, sent, synced_cloud


def message(**route: str) -> Message:
    return new_message(**{"source": "twin", "group": "resource", "operation": "update", "resource": "a/b/c", **route})


@pytest.mark.parametrize(
    "route",
    (
        {"source": "x" * 65},
        {"group": "x" * 65},
        {"operation": "x" * 65},
        {"operation": "get\n2026-01-01 ERROR fake"},
        {"source": "\x1b[2J"},
        {"group": "user", "resource": "t" * 70_000},
    ),
)
def test_words_of_a_route_are_short_and_on_one_line(route: dict[str, str]) -> None:
    assert wrong_with(message(**route), "edge-1")
    assert not wrong_with(message(), "edge-1")


@pytest.mark.parametrize(
    "name", ("", "Edge-1", "edge-1\x00", "edge_1", "edge-1/", "ｅdge", "edge-1.", "-e", "a" * 254, "e%2f", "e\n", "..")
)
def test_what_is_no_node_is_not_let_in(name: str) -> None:
    with pytest.raises(Refusal):
        node_of_upgrade({"node_id": name, "ConnectionUse": "msg"})


def test_small_messages_count_for_what_they_cost() -> None:
    outbox = Outbox()
    one = message(resource="r" * 500)
    outbox.post(one)
    assert outbox.held_bytes == one.size + OVERHEAD > 1500
    assert outbox.next(0.0) is one
    assert outbox.held_bytes == 0
    many = MAX_BYTES // OVERHEAD
    assert many <= 300_000


def test_a_node_that_asks_and_does_not_read_gets_little_of_our_memory() -> None:
    outbox = Outbox()
    for number in range(2):
        outbox.post(new_message(source="", group="user", operation="error", resource="t", parent="x"))
        outbox.put_answer(
            new_message(
                source="", group="resource", operation="response", resource="t", parent="x", content="s" * 10**7
            )
        )
        assert outbox.overflowing is False, number
    outbox.put_object(
        new_message(source="", group="resource", operation="update", resource="a/b/c", content="s" * 10**8)
    )
    before = outbox.overflowing
    for _ in range(2):
        outbox.put_answer(
            new_message(
                source="", group="resource", operation="response", resource="t", parent="x", content="s" * 10**7
            )
        )
    assert (before, outbox.overflowing) == (False, True)
    while (sent := outbox.next(0.0)) is not None:
        outbox.acknowledge(sent.id, 0.0)
    assert (outbox.held_bytes, outbox.answer_bytes) == (0, 0)


def test_a_log_line_is_one_line() -> None:
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    said = "edge-1: bye\r\n2026-01-01 ERROR all devices lost\x1b[2J\u2028\u202e\x9b"
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "node %s", (said,), None))
    assert stream.getvalue() == (
        "INFO node edge-1: bye\\r\\n2026-01-01 ERROR all devices lost\\x1b[2J\\u2028\\u202e\\x9b\n"
    )


def test_reports_are_bounded() -> None:
    big = Raw(b'{"twin":{"a":"' + b"x" * MAX_REPORT_BYTES + b'"},"device":{"state":"x"}}')
    report = new_message(source="twin", group="resource", operation="update", resource="r", content=big)
    for read in (read_twin_report, read_state_report):
        with pytest.raises(MalformedMessage, match="more than"):
            read(report)
    many = Raw(b'{"twin":{' + b",".join(b'"p%d":{}' % n for n in range(MAX_PROPERTIES + 1)) + b"}}")
    with pytest.raises(MalformedMessage, match="properties"):
        read_twin_report(new_message(source="twin", group="resource", operation="update", resource="r", content=many))
    content = {"twin": {f"p{n}": 5 for n in range(1000)}}
    _, wrong = read_twin_report(
        new_message(source="twin", group="resource", operation="update", resource="r", content=content)
    )
    assert 0 < len(wrong) < 100


def test_answers_are_not_deep() -> None:
    assert not _is_deep(Raw(b'{"values":[{"a":1}],"b":null}'))
    assert _is_deep(Raw(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)))
    assert _is_deep(Raw(b"[" * 100_000 + b"]" * 100_000))


def test_an_inventory_is_bounded() -> None:
    objects = {f"default/device/d{n}": ["", ""] for n in range(MAX_OBJECTS + 1)}
    with pytest.raises(MalformedMessage, match="objects"):
        read_inventory(request({"objects": objects}))


def request(content: object) -> Message:
    return new_message(
        source="twin", group="resource", operation="get", resource="membership/detail", content=json.dumps(content)
    )


def test_the_budget() -> None:
    now = 100.0
    kept = Budget(lambda: now)
    for _ in range(4):
        assert kept.wait_s("a") == 0
        kept.spend("a", 5000)
    assert kept.wait_s("a") == pytest.approx(4 * (5000 + REQUEST) / RATE - BURST / RATE)
    assert kept.wait_s("b") == 0
    now += 1
    assert kept.wait_s("a") == 0


async def test_refusals_fill_no_log(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(200):
        cloud.hub._note_refusal("certificate", f"node-{number}", f"reason {number}")
    assert len([record for record in caplog.records if "refused" in record.message]) == 60
    assert cloud.hub.counts["refused: certificate"] == 200


@pytest.mark.parametrize("name", ("127.0.0.1", "cloud.example", "CLOUD.example.", "*.example"))
def test_a_node_does_not_get_the_clouds_own_addresses(name: str) -> None:
    """Where identity is not strict, a node may have a server's certificate."""

    def asked(of: x509.GeneralName) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([of]), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    ca = create_ca()
    how: dict[str, Any] = {"days": 1, "usages": [1, 2], "strict": False, "reserved": ["127.0.0.1", "Cloud.Example"]}
    of = x509.IPAddress(ipaddress.ip_address(name)) if name[0] == "1" else x509.DNSName(name)
    with pytest.raises(RequestRefused):
        sign_request(ca, asked(of), "edge-1", **how)
    assert sign_request(ca, asked(x509.DNSName("edge-1.example")), "edge-1", **how)


async def test_nobody_is_served_before_the_revocations_are_read(kube: Kubernetes) -> None:
    revocations = Revocations(kube, REVOKED.name, changed=lambda: None)
    owners = RevocationsFirst(SoleOwner(), revocations)
    assert not owners.acquire_now("edge-1")
    served = asyncio.create_task(owners.acquire("edge-1"))
    await asyncio.sleep(0.05)
    assert not served.done()
    reading = asyncio.create_task(revocations.run())
    await asyncio.wait_for(served, 10)
    assert owners.acquire_now("edge-1")
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_names_that_are_none_are_few_in_the_log(kube: Kubernetes, tmp_path: Path) -> None:
    async with joining_cloud(kube, tmp_path) as cloud:
        answers = [(await cloud.get("/edge.crt", headers={"NodeName": f"NO-{n}"}))[0] for n in range(BAD_TOKENS + 3)]
        assert answers == [400] * BAD_TOKENS + [429] * 3
        assert len(cloud.audit.reasons) == BAD_TOKENS


async def test_a_revoked_token_is_not_good_in_another_spelling(kube: Kubernetes, tmp_path: Path) -> None:
    async with joining_cloud(kube, tmp_path) as cloud:
        token = await cloud.token()
        await revoke(kube, "token:" + hashlib.sha256(token.encode()).hexdigest())
        await until(lambda: cloud.joining.revocations.current.tokens)
        for spelling in (token, token + "=", token + "=="):
            headers = {"Authorization": "Bearer " + spelling.partition(".")[2]}
            assert (await cloud.join(headers=headers))[0] == 401


async def test_a_node_cannot_keep_us_busy_with_its_membership(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "BURST", 0.0)
    monkeypatch.setattr(budget, "RATE", 20.0)  # a request is half a second's
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        asked = [await edge.ask_membership() for _ in range(50)]
        await until(lambda: edge.answers(asked[-1]))
        assert sum(bool(edge.answers(one)) for one in asked) <= 3
        await asyncio.sleep(0)


async def test_what_a_node_makes_up_is_deleted_bit_by_bit(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "MAX_DELETIONS", 10)
    made = await kube.create(DEVICES, device())
    has = {f"default/device/made-up-{n}": ("u", "1") for n in range(25)}
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await until(lambda: cloud.controller.devices.get(Key("default", "thermo-1")))
        edge.acknowledging = True
        await ask(edge, has)
        await until(lambda: len([one for one in sent(edge) if one[0] == "delete"]) == 25)
    assert made
