"""Who is shut out: the list, at the join port, at the hub, and of those who are in."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.devicecontroller import DeviceController
from cloudcore.joining.admission import identity_refusal
from cloudcore.joining.revocations import DenyList, parse
from cloudedge import ConnectionLost, certificates, tls
from cloudedge.dialling import connect
from kubetwin.apiserver import ApiServer
from tests.cloudcore.join_world import CONFIG_MAPS, REVOKED, Cloud, joining_cloud, revoke
from tests.cloudcore.support import Kubernetes, open_client, until


def test_the_list() -> None:
    digest = "AB" * 32
    deny, unread = parse(
        {
            "lost gateways": "edge-7 # stolen in May\n\n  edge-8\n# edge-9",
            "certificates": f"serial: 00:0A:ff\nSHA256:{digest}\ntoken:{digest.lower()}",
        }
    )
    assert deny == DenyList(
        nodes=frozenset({"edge-7", "edge-8"}),
        serials=frozenset({"aff"}),
        fingerprints=frozenset({digest.lower()}),
        tokens=frozenset({digest.lower()}),
    )
    assert not unread
    assert deny.refusal("edge-7", None)
    assert deny.refusal("edge-1", {"serialNumber": "0AFF"})
    assert deny.refusal("edge-1", {"sha256": digest.lower()})
    assert not deny.refusal("edge-1", {"serialNumber": "0AFE", "sha256": "cd" * 32})


def test_lines_that_say_nothing_are_told() -> None:
    deny, unread = parse({"a": "edge-1\nsha256:abcd\nEDGE\nserial:\nserial:xyz\nother:1\n", "b": 3})
    assert deny == DenyList(nodes=frozenset({"edge-1", "3"}))
    assert [line.split(":")[0] for line in unread] == [f"a, line {number}" for number in (2, 3, 4, 5, 6)]


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=60) | st.integers() | st.none(), max_size=5))
def test_any_content_is_read(data: dict[str, Any]) -> None:
    parse(data)


def subject(*parts: tuple[str, str]) -> dict[str, Any]:
    return {"subject": tuple(((name, value),) for name, value in parts)}


@pytest.mark.parametrize(
    ("certificate", "strictly", "loosely"),
    (
        (subject(("organizationName", "system:nodes"), ("commonName", "system:node:n")), True, True),
        (subject(("organizationName", "system:nodes"), ("commonName", "system:node:m")), False, False),
        (subject(("commonName", "system:node:n")), False, False),
        (subject(("organizationName", "system:masters"), ("commonName", "system:node:n")), False, False),
        (subject(("organizationName", "KubeEdge"), ("commonName", "kubeedge.io")), False, True),
        (subject(("organizationName", "KubeEdge"), ("commonName", "KubeEdge")), False, False),
        (
            subject(
                ("organizationName", "system:nodes"), ("commonName", "system:node:n"), ("commonName", "system:node:m")
            ),
            False,
            False,
        ),
        (None, False, False),
    ),
)
def test_whose_a_certificate_is(certificate: dict[str, Any] | None, strictly: bool, loosely: bool) -> None:
    assert (not identity_refusal("n", certificate, strict=True)) is strictly
    assert (not identity_refusal("n", certificate, strict=False)) is loosely


async def test_no_certificate_for_who_is_revoked(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path / "none") as cloud:
        bearer, token = await cloud.bearer(), await cloud.token()
        pair = certificates.sign_node(cloud.ca, "edge-2")
        assert (await cloud.join("edge-2", pair=pair))[0] == 200
        await revoke(kube, "edge-1", f"serial:{pair.certificate.serial_number:x}")
        await until(lambda: len(cloud.joining.revocations.current) == 2)
        assert (await cloud.join("edge-1", headers=bearer))[0] == 401
        assert (await cloud.join("edge-2", pair=pair))[0] == 401
        assert (await cloud.join("edge-2", headers=bearer))[0] == 200, "its certificate is revoked, it is not"
        await revoke(kube, f"token:{hashlib.sha256(token.encode()).hexdigest()}")
        await until(lambda: cloud.joining.revocations.current.tokens)
        assert (await cloud.join("edge-1", headers=bearer))[0] == 401
        await kube.delete(CONFIG_MAPS, REVOKED)
        await until(lambda: not len(cloud.joining.revocations.current))
        assert (await cloud.join("edge-1", headers=bearer))[0] == 200


async def test_who_is_revoked_is_ended_at_once_and_nobody_else(
    api: ApiServer, kube: Kubernetes, tmp_path: Path
) -> None:
    async with joining_cloud(kube, tmp_path / "none") as cloud:
        controller = DeviceController(kube)
        hub = CloudHub(
            HubSettings(host="127.0.0.1", port=0),
            ssl_context=cloud.joining.hub_context(),
            devices=controller,
            admission=cloud.joining.admission,
            audit=cloud.audit,
        )
        cloud.joining.changed = hub.end_refused
        serving = asyncio.create_task(hub.run())
        await hub.listening.wait()
        try:
            edges = {name: await dial(cloud, hub.port, name, tmp_path) for name in ("edge-1", "edge-2", "edge-3")}
            await until(lambda: len(hub.nodes) == 3)
            fingerprint = certificates.load(tmp_path, "edge-2").certificate.fingerprint(SHA256())
            await revoke(kube, "edge-1", f"sha256:{fingerprint.hex()}")
            for name in ("edge-1", "edge-2"):
                with pytest.raises(ConnectionLost, match="revoked"):
                    await edges[name].receive()
            await until(lambda: hub.nodes == {"edge-3"})
            again = await dial(cloud, hub.port, "edge-1", tmp_path)
            with pytest.raises(ConnectionLost, match="revoked"):
                await again.receive()
            assert sorted(set(cloud.audit.reasons)) == [
                "connection: not admitted: node edge-1 is revoked",
                "connection: not admitted: this certificate is revoked",
            ]
            await revoke(kube, "edge-2")
            await until(lambda: cloud.joining.revocations.current.nodes == {"edge-2"})
            back = await dial(cloud, hub.port, "edge-1", tmp_path)
            await until(lambda: hub.nodes == {"edge-1", "edge-3"})
            for connection in (*edges.values(), again, back):
                await connection.close()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def dial(cloud: Cloud, port: int, node: str, directory: Path) -> Any:
    if not (directory / f"{node}.crt").exists():
        certificates.save(certificates.sign_node(cloud.ca, node), directory, node)
        (directory / "ca.crt").write_bytes(certificates.pem(cloud.ca)[0])
    context = tls.client_context(
        ca_file=directory / "ca.crt", cert_file=directory / f"{node}.crt", key_file=directory / f"{node}.key"
    )
    return await connect(f"wss://127.0.0.1:{port}", node=node, ssl_context=context)
