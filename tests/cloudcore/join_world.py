"""A cluster, cloud cores that join nodes to it, and clients of the join port."""

import asyncio
import base64
import http.client
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.x509 import load_der_x509_certificate

from cloudcore.audit import Audit
from cloudcore.joining import CredentialFiles, Joining, JoiningSettings, JoinSettings
from cloudcore.joining.secrets import SECRETS, read_token
from cloudcore.kube import Key, Kind, KubeClient, NotFound, Object
from cloudedge import certificates
from cloudedge.certificates import Issued
from cloudedge.signing import make_request
from cloudedge.tls import load_pair
from cloudedge.token import bearer_of
from dmi.metrics import Metrics
from dmi.web.http import Limits

HURRIED = Limits(idle_s=0.3, read_s=0.3, linger_s=0.1, one_request=True)
CONFIG_MAPS = Kind(group="", version="v1", plural="configmaps", kind="ConfigMap")
REVOKED = Key("kubeedge", "kubetwin-revoked")


class Remembering(Audit):
    def __init__(self) -> None:
        super().__init__(Metrics())
        self.reasons: list[str] = []

    def refused(self, reason: str, **of_what: Any) -> None:
        self.reasons.append(f"{reason}: {of_what.get('detail', '')}")
        super().refused(reason, **of_what)


def files(directory: Path) -> CredentialFiles:
    """As `kubetwin certs` names them; there need not be any."""
    return CredentialFiles(
        ca=directory / "ca.crt",
        ca_key=directory / "ca.key",
        server=directory / "server.crt",
        server_key=directory / "server.key",
    )


class Cloud:
    def __init__(self, joining: Joining, audit: Remembering, client: KubeClient) -> None:
        self.joining = joining
        self.audit = audit
        self.client = client

    @property
    def ca(self) -> Issued:
        assert self.joining.credentials.ca is not None
        return self.joining.credentials.ca

    @property
    def port(self) -> int:
        assert self.joining.service is not None
        return self.joining.service.port

    async def token(self) -> str:
        return await token_of(self.client)

    async def bearer(self) -> dict[str, str]:
        return {"Authorization": "Bearer " + bearer_of(await self.token())}

    async def get(
        self, path: str, *, body: bytes = b"", pair: Issued | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """What a client that trusts the CA gets; `pair` is its certificate."""
        return await get(self.port, certificates.pem(self.ca)[0], path, body=body, pair=pair, headers=headers)

    async def join(
        self,
        node: str = "edge-1",
        *,
        request: bytes | None = None,
        pair: Issued | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        asked = make_request(node)[0] if request is None else request
        return await self.get("/edge.crt", body=asked, pair=pair, headers={"NodeName": node, **(headers or {})})


async def get(
    port: int,
    ca: bytes,
    path: str,
    *,
    body: bytes = b"",
    pair: Issued | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body; `ca` as PEM, `pair` the client's certificate."""
    context = ssl.create_default_context(cadata=ca.decode())
    if pair is not None:
        load_pair(context, b"".join(certificates.pem(pair)))
    return await asyncio.to_thread(_get, port, context, path, body, headers or {})


def _get(port: int, context: ssl.SSLContext, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", path, body=body or None, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def token_of(client: KubeClient) -> str:
    """The cluster's join token, as soon as there is one."""
    async with asyncio.timeout(10):
        while True:
            try:
                return read_token(await client.get(SECRETS, Key("kubeedge", "tokensecret")))
            except NotFound:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def joining_cloud(
    client: KubeClient, directory: Path, *, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[Cloud]:
    audit = Remembering()
    strict = settings.get("strict", True)
    whole = JoiningSettings(
        **{
            "files": files(directory),
            "names": ("127.0.0.1", ""),
            "https": JoinSettings(host="127.0.0.1", port=0, strict=strict),
            **settings,
        }
    )
    joining = Joining(client, whole, audit=audit)
    if limits is not None and joining.service is not None:
        joining.service._server._limits = limits  # what a slow client may take, for tests that wait for its end
    await joining.open()
    running = asyncio.create_task(joining.run())
    try:
        async with asyncio.timeout(10):
            while not joining.revocations.known:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.01)
        yield Cloud(joining, audit, client)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def revoke(client: KubeClient, *lines: str) -> Object:
    """Put the list of revocations in the place of what there was."""
    about = {"name": REVOKED.name, "namespace": REVOKED.namespace}
    whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"list": "\n".join(lines)}}
    try:
        return await client.replace(CONFIG_MAPS, REVOKED, whole)
    except NotFound:
        return await client.create(CONFIG_MAPS, whole)


def issued_by(ca: Issued, certificate: bytes) -> bool:
    """Whether an answer is a certificate of the CA."""
    load_der_x509_certificate(certificate).verify_directly_issued_by(ca.certificate)
    return True


def data(secret: Object) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in secret["data"].items()}
