"""The join port, with real TLS clients: who gets a certificate, who does not, and what becomes of those who stall."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudcore.joining import attempts as attempts_module
from cloudcore.joining import service as service_module
from cloudcore.joining.admission import RevocationsFirst
from cloudcore.joining.attempts import Attempts
from cloudedge import certificates
from cloudedge.certificates import Issued
from cloudedge.signing import make_request
from cloudedge.token import bearer_of, mint_token
from kubetwin.apiserver import ApiServer
from tests.cloudcore.join_world import HURRIED, Cloud, get, issued_by, joining_cloud
from tests.cloudcore.support import open_client, until


class Gate(list[str]):
    """Owners that give away every node, and note it."""

    def acquire_now(self, node: str, /) -> bool:
        self.append(node)
        return True

    async def acquire(self, node: str, /) -> None:
        self.append(node)

    def released(self, node: str, /) -> None:
        self.append(f"{node} released")


@pytest.fixture
async def cloud(api: ApiServer, tmp_path: Path) -> AsyncIterator[Cloud]:
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path / "none") as running:
        yield running


def signed_by(ca: Issued, *, organization: str, name: str, days: int = 1) -> Issued:
    oids = NameOID
    subject = x509.Name(
        [x509.NameAttribute(oids.ORGANIZATION_NAME, organization), x509.NameAttribute(oids.COMMON_NAME, name)]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return Issued(certificates.certify(ca, subject, key.public_key(), days=days, usages=usages), key)


async def test_a_node_joins_as_upstreams_does_and_renews(cloud: Cloud) -> None:
    status, ca = await cloud.get("/ca.crt")
    assert (status, ca) == (200, certificates.der(cloud.ca)[0])
    request, key = make_request("edge-1")
    status, signed = await cloud.join(request=request, headers=await cloud.bearer())
    assert status == 200
    assert issued_by(cloud.ca, signed)
    pair = Issued(x509.load_der_x509_certificate(signed), key)
    status, renewed = await cloud.join(pair=pair, headers={"ExtKeyUsages": "[2]"})
    assert status == 200
    assert issued_by(cloud.ca, renewed)
    assert not cloud.audit.reasons


async def test_bad_tokens(cloud: Cloud) -> None:
    ca, key = certificates.der(cloud.ca)
    good = bearer_of(await cloud.token())
    foreign = bearer_of(mint_token(*certificates.der(certificates.create_ca()), expires_at=time.time() + 60))
    expired = bearer_of(mint_token(ca, key, expires_at=time.time() - 1))
    for header in ("", "Bearer", "Bearer ", f"Basic {good}", f"Bearer {good[:-2]}", f"Bearer {foreign}"):
        assert (await cloud.join(headers={"Authorization": header}))[0] == 401, header
    status, text = await cloud.join(headers={"Authorization": f"Bearer {expired}"})
    assert (status, b"expired" in text) == (401, True)
    assert (await cloud.join(headers={"Authorization": f"bearer {good}"}))[0] == 200
    assert all(reason.startswith("join: token") for reason in cloud.audit.reasons)
    assert len(cloud.audit.reasons) == 7
    assert good not in "".join(cloud.audit.reasons)


async def test_an_address_with_many_bad_tokens_waits(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    service = cloud.joining.service
    assert service is not None
    monkeypatch.setattr(service, "_bad_tokens", Attempts(2))
    answers = [(await cloud.join(headers={"Authorization": "Bearer a.b.c"}))[0] for _ in range(3)]
    assert answers == [401, 401, 429]
    assert (await cloud.join(headers=await cloud.bearer()))[0] == 200, "a balancer may have this address"
    assert (await cloud.join(headers={"Authorization": "Bearer a.b.c"}))[0] == 429
    pair = certificates.sign_node(cloud.ca, "edge-1")
    assert (await cloud.join(pair=pair))[0] == 200, "who has a certificate needs no token"


def test_attempts_by_address() -> None:
    now = [0.0]
    attempts = Attempts(2, window_s=60, clock=lambda: now[0])
    for address in ("a", "a", *(f"b{number}" for number in range(4000))):
        attempts.add(address)
    assert (attempts.wait_s("a"), attempts.wait_s("b1")) == (60, 0)
    now[0] = 61.0
    assert attempts.wait_s("a") == 0
    attempts.add("a")
    assert attempts.wait_s("a") == 0, "counted anew"


def test_attempts_of_no_end_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "MAX_ADDRESSES", 3)
    attempts = Attempts(1)
    for address in ("a", "b", "c", "a", "d"):
        attempts.add(address)
    assert [bool(attempts.wait_s(address)) for address in "abcd"] == [True, False, True, True]


async def test_nothing_is_signed_before_it_is_known_who_is_revoked(cloud: Cloud) -> None:
    headers, synced = await cloud.bearer(), cloud.joining.revocations._informer.synced
    synced.clear()
    status, text = await cloud.join(headers=headers)
    assert (status, b"revocations" in text) == (503, True)
    owners = RevocationsFirst(Gate(), cloud.joining.revocations)
    assert not owners.acquire_now("edge-1")
    acquiring = asyncio.create_task(owners.acquire("edge-1"))
    await asyncio.sleep(0)
    assert not acquiring.done()
    synced.set()
    await asyncio.wait_for(acquiring, 5)
    assert owners.acquire_now("edge-1")
    owners.released("edge-1")
    assert owners._owners == Gate(["edge-1", "edge-1", "edge-1 released"])
    assert (await cloud.join(headers=headers))[0] == 200


async def test_without_the_key_of_the_ca_nothing_is_signed(cloud: Cloud) -> None:
    headers, ca = await cloud.bearer(), cloud.joining.credentials.ca
    try:
        cloud.joining.credentials.ca = None
        assert ca is not None
        status, text = await get(
            cloud.port, certificates.pem(ca)[0], "/edge.crt", headers={"NodeName": "edge-1", **headers}
        )
        assert (status, b"no CA key" in text) == (503, True)
    finally:
        cloud.joining.credentials.ca = ca


async def test_certificates_of_others(cloud: Cloud) -> None:
    other = certificates.sign_node(cloud.ca, "edge-2")
    status, text = await cloud.join("edge-1", pair=other, headers=await cloud.bearer())
    assert (status, b"system:node:edge-2" in text) == (401, True), "a token does not make up for it"
    for organization, name in (("KubeEdge", "kubeedge.io"), ("system:masters", "system:node:edge-1")):
        pair = signed_by(cloud.ca, organization=organization, name=name)
        assert (await cloud.join(pair=pair))[0] == 401
    assert [reason.split(":")[1] for reason in cloud.audit.reasons] == [" certificate"] * 3


async def test_an_expired_or_foreign_certificate_does_not_get_through_tls(cloud: Cloud) -> None:
    foreign = certificates.sign_node(certificates.create_ca(), "edge-1")
    expired = signed_by(cloud.ca, organization="system:nodes", name="system:node:edge-1", days=0)
    server = certificates.sign_server(cloud.ca, ["127.0.0.1"])
    for pair in (foreign, expired, server):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await cloud.join(pair=pair)
    assert cloud.joining.service is not None
    assert cloud.joining.service._server.tls_failures == 3


async def test_requests_that_are_not_signed(cloud: Cloud) -> None:
    headers = await cloud.bearer()
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.node_subject("edge-1"))
    wrong_key = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    for asked in (make_request("edge-2")[0], wrong_key, b"", b"nonsense"):
        status, text = await cloud.join(request=asked, headers=headers)
        assert (status, text.startswith(b"not signed")) == (500, True)
    status, _ = await cloud.join(headers={**headers, "ExtKeyUsages": "[1]"})
    assert status == 500
    for node in ("", "../x", "Edge", "a" * 254, "a b"):
        assert (await cloud.join(node, request=b"", headers=headers))[0] == 400
    assert (await cloud.join(request=b"x" * 70_000, headers=headers))[0] == 413
    assert (await cloud.get("/edge.crt", headers=headers))[0] == 400


async def test_an_old_cluster(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path / "none", strict=False) as cloud:
        legacy = signed_by(cloud.ca, organization="KubeEdge", name="kubeedge.io")
        status, signed = await cloud.join("edge-1", request=make_request("whoever")[0], pair=legacy)
        assert status == 200
        assert x509.load_der_x509_certificate(signed).subject == certificates.node_subject("edge-1")


async def test_whether_a_node_exists(cloud: Cloud) -> None:
    await cloud.client.create(
        service_module.NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-9"}}
    )
    assert await cloud.get("/node/edge-9") == (200, b"Node found")
    for name in ("edge-8", "..", "a%2Fb", "%ff"):
        assert (await cloud.get(f"/node/{name}"))[0] in (404, 400)
    await cloud.client.close()
    assert (await cloud.get("/node/edge-9"))[0] == 500


async def test_health_and_what_is_not_served(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await cloud.get("/healthz"))[0] == 200
    assert (await cloud.get("/readyz"))[0] == 200
    monkeypatch.setattr(cloud.joining, "_unready", lambda: "not yet")
    assert await cloud.get("/readyz") == (503, b"not yet")
    for path in ("/", "/nodeupgrade", "/debug/pprof/", "/ca.crt/"):
        assert (await cloud.get(path))[0] == 404


async def test_no_body_and_no_token_gets_anything_but_a_refusal(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    headers = await cloud.bearer()
    service = cloud.joining.service
    assert service is not None
    service._bad_tokens = Attempts(10**6)
    inputs = st.tuples(st.binary(max_size=400), st.text(st.characters(codec="latin-1", exclude_categories=["C"])))
    drawn: list[tuple[bytes, str]] = []

    @given(inputs)
    @settings(max_examples=8, database=None)
    def draw(one: tuple[bytes, str]) -> None:
        drawn.append(one)

    draw()
    for body, token in drawn:
        assert (await cloud.join(request=body, headers=headers))[0] == 500
        assert (await cloud.join(request=body, headers={"Authorization": f"Bearer {token}"}))[0] == 401
    assert "Traceback" not in caplog.text
    assert "failed" not in caplog.text


async def stall(port: int, *, tls: bool, sent: bytes, drip: bytes = b"") -> bool:
    """Connect, send something and then a byte now and then; whether the server ended it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context if tls else None)
    try:
        writer.write(sent)
        async with asyncio.timeout(8):
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                writer.write(drip)
                await asyncio.wait([reading], timeout=0.05)
            with contextlib.suppress(OSError):
                await reading
            return True
    except OSError:
        return True
    finally:
        writer.transport.abort()


async def test_slow_clients_are_ended_and_keep_nobody_out(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PER_ADDRESS", 8)
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path / "none", limits=HURRIED) as cloud:
        bearer = await cloud.bearer()
        head = b"GET /edge.crt HTTP/1.1\r\nHost: x\r\n"
        stalls = [
            stall(cloud.port, tls=False, sent=b""),
            stall(cloud.port, tls=False, sent=b"\x16\x03\x01"),
            stall(cloud.port, tls=True, sent=b""),
            stall(cloud.port, tls=True, sent=head, drip=b"a"),
            stall(cloud.port, tls=True, sent=head + b"NodeName: edge-1\r\nContent-Length: 60000\r\n\r\n", drip=b"a"),
            stall(cloud.port, tls=True, sent=head + b"Transfer-Encoding: chunked\r\n\r\n", drip=b"1\r\na\r\n"),
        ]
        ended = asyncio.gather(*stalls)
        await asyncio.sleep(0.1)
        assert (await cloud.join(headers=bearer))[0] == 200, "meanwhile"
        assert await ended == [True] * len(stalls)
        assert cloud.joining.service is not None
        server = cloud.joining.service._server
        await until(lambda: not server.open_connections, what="all are let go")
        idle = [socket.create_connection(("127.0.0.1", cloud.port)) for _ in range(12)]
        await until(lambda: server.turned_away >= 4, what="an address has its share")
        for each in idle:
            each.close()
        await until(lambda: not server.open_connections, what="all are let go")
        assert (await cloud.join(headers=bearer))[0] == 200
