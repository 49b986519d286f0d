"""The cloud's own credentials: its CA and its server certificate.

Each comes from local files if both are there, else from the cluster's Secret, else it is made; the Secrets are brought
up to it. Replicas that start on an empty cluster end with one CA: whoever creates the Secret first has made it.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from cloudcore.joining import secrets
from cloudcore.joining.secrets import PairSecret
from cloudcore.kube import AlreadyExists, Conflict, KubeClient, KubeError
from cloudedge import certificates, tls
from cloudedge.certificates import Issued
from dmi import ConfigError
from dmi.metrics import Metrics

__all__ = ["CredentialFiles", "Credentials"]

logger = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.5
RETRY_CAP_S: Final = 15.0
LOOK_S: Final = 300.0
"""Between looks at files and Secrets for a newer server certificate."""
RENEW_LEFT: Final = datetime.timedelta(days=30)
"""A server certificate that ends sooner is made anew."""


class CredentialFiles(Struct, frozen=True):
    ca: Path
    ca_key: Path
    server: Path
    server_key: Path


class Credentials:
    """`open` them, then use them; `run` keeps the server certificate good and the Secrets complete."""

    def __init__(
        self, client: KubeClient, files: CredentialFiles, names: Iterable[str], *, metrics: Metrics | None = None
    ) -> None:
        """`names`: the IP addresses and DNS names that nodes dial; empty ones do not count."""
        self.ca: Issued | None = None
        """None: only the CA's certificate is here, so nothing can be signed."""
        self._client = client
        self._files = files
        self._names = list(dict.fromkeys(name for name in names if name))
        self._ca: x509.Certificate
        self._server: Issued
        self._local_ca = self._local_server = False
        self._contexts: list[ssl.SSLContext] = []
        self._said = ""
        (metrics or Metrics()).gauge(
            "kubetwin_cloudcore_certificate_expiry_seconds",
            "When a certificate of the cloud's own ends, since the epoch.",
            "certificate",
            read=self._ends,
        )

    @property
    def ca_der(self) -> bytes:
        """The CA's certificate, as `/ca.crt` answers it."""
        return self._ca.public_bytes(Encoding.DER)

    @property
    def ca_key_der(self) -> bytes | None:
        return None if self.ca is None else certificates.der(self.ca)[1]

    @property
    def server(self) -> x509.Certificate:
        return self._server.certificate

    @property
    def complete_locally(self) -> bool:
        """Nothing is needed of the cluster."""
        return self._local_ca and self._local_server

    async def open(self) -> None:
        """Find or make both; waits for the API server unless the files have it all.

        Raises:
            ConfigError: A file or Secret is there and cannot be used.
        """
        try:
            self._read_files()
            if self.complete_locally:
                return
            delay_s = RETRY_FIRST_S
            while True:
                try:
                    await self._from_cluster()
                    return
                except KubeError as error:
                    level = logging.INFO if isinstance(error, AlreadyExists | Conflict) else logging.WARNING
                    logger.log(level, "the cloud's certificates are not here yet: %s; trying on", error)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_CAP_S, delay_s * 2)
        except ValueError as error:
            raise ConfigError("modules.cloudHub", f"the cloud's certificates cannot be used: {error}") from error

    def context(self, *, certificate_required: bool) -> ssl.SSLContext:
        """For a server. It keeps up with the server certificate: what shakes hands later gets the newer one."""
        context = tls.serving_context(
            self._ca.public_bytes(Encoding.PEM), self._pair(), certificate_required=certificate_required
        )
        self._contexts.append(context)
        return context

    async def run(self) -> None:
        """Until cancelled: write back what files had, and follow the server certificate."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._refresh()
                delay_s = RETRY_FIRST_S
                await asyncio.sleep(LOOK_S)
            except (KubeError, ValueError, OSError) as error:
                if self._said != str(error):
                    self._said = str(error)
                    logger.warning("the cloud's certificates cannot be kept in step: %s; trying on", error)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_CAP_S, delay_s * 2)

    # where they come from

    def _read_files(self) -> None:
        """Raises: ValueError, OSError: They are there and cannot be used."""
        files = self._files
        if files.ca.exists() and files.ca_key.exists():
            self.ca = certificates.load_files(files.ca, files.ca_key)
            self._ca, self._local_ca = self.ca.certificate, True
        if files.server.exists() and files.server_key.exists():
            self._server, self._local_server = certificates.load_files(files.server, files.server_key), True
            if not self._local_ca and files.ca.exists():
                # A cloud that was given certificates and no authority over them serves the nodes there are.
                self._ca, self._local_ca = x509.load_pem_x509_certificate(files.ca.read_bytes()), True
                logger.warning("%s is not there: no node can join, nor renew its certificate, here", files.ca_key)
            self._warn_of_names()
            if self._local_ca and (why := _not_issued(self.server, self._ca)):
                logger.warning("%s: %s in %s; nodes may not trust it", self._files.server, why, self._files.ca)

    def _warn_of_names(self) -> None:
        if not certificates.covers(self.server, self._names):
            logger.warning(
                "%s is for %s, but nodes are to dial %s (advertiseAddress, dnsNames): make another one",
                self._files.server,
                ", ".join(certificates.names_of(self.server)) or "no address",
                ", ".join(self._names),
            )

    async def _from_cluster(self) -> None:
        if not self._local_ca and self._local_server and await secrets.find(self._client, secrets.CA.name) is None:
            raise ValueError(
                f"tlsCertFile {self._files.server} is there, but neither tlsCAFile {self._files.ca} nor a Secret with "
                "the CA that it is of"
            )
        if not self._local_ca:
            self.ca = await self._found_or_made(secrets.CA, certificates.create_ca)
            self._ca = self.ca.certificate
        if not self._local_server:
            self._server = await self._server_of_cluster()
        elif why := _not_issued(self.server, self._ca):
            raise ValueError(f"{self._files.server}: {why} in Secret {secrets.NAMESPACE}/{secrets.CA.name}")

    async def _found_or_made(self, kind: PairSecret, make: Callable[[], Issued]) -> Issued:
        found = await secrets.read_pair(self._client, kind)
        if found is not None:
            return found
        made = make()
        await secrets.create(self._client, kind.name, kind.data(made))  # AlreadyExists: read that one, next time round
        logger.info("made Secret %s/%s", secrets.NAMESPACE, kind.name)
        return made

    async def _server_of_cluster(self) -> Issued:
        """The pair in the Secret if it is good, or else a new one in its place.

        Raises:
            AlreadyExists, Conflict: Another replica was quicker: ask again.
            ValueError: A new one is needed, and there is no CA to sign it.
        """
        secret = await secrets.find(self._client, secrets.SERVER.name)
        names, why = self._names, "there is none"
        if secret is not None:
            try:
                pair = secrets.SERVER.pair(secret)
            except ValueError as error:
                why = str(error)
            else:
                # With the names of before: replicas may have been given different ones, and all use this certificate.
                names = list(dict.fromkeys([*certificates.names_of(pair.certificate), *self._names]))
                why = self._unfit(pair.certificate)
            if not why:
                return pair
        if self.ca is None:
            raise ValueError(f"a server certificate is needed ({why}), and the CA's key is not here")
        made = certificates.sign_server(self.ca, names)
        data = secrets.SERVER.data(made)
        if secret is None:
            await secrets.create(self._client, secrets.SERVER.name, data)
        else:
            await secrets.replace(self._client, secret, data)
        logger.info("made a server certificate for %s: %s", ", ".join(names) or "no address", why)
        return made

    def _unfit(self, certificate: x509.Certificate) -> str:
        """Why a server certificate needs a successor; empty: it does not."""
        if why := _not_issued(certificate, self._ca):
            return why
        if certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < RENEW_LEFT:
            return f"it ends at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}"
        return "" if certificates.covers(certificate, self._names) else "it lacks an address that nodes dial"

    # keeping them

    async def _refresh(self) -> None:
        if self.ca is None:
            await self._adopt_key()
        elif self._local_ca:
            await self._write_back(secrets.CA, self.ca)
        else:
            await self._keep_ca(self.ca)
        if self._local_server:
            self._take(certificates.load_files(self._files.server, self._files.server_key))
            await self._write_back(secrets.SERVER, self._server)
        else:
            self._take(await self._server_of_cluster())
        self._said = ""

    async def _adopt_key(self) -> None:
        """The cluster may have the key of the CA whose certificate alone is in a file."""
        found = await secrets.read_pair(self._client, secrets.CA)
        if found is not None and found.certificate == self._ca:
            self.ca = found
            logger.info("the CA's key is in Secret %s/%s: nodes can join", secrets.NAMESPACE, secrets.CA.name)

    async def _keep_ca(self, ours: Issued) -> None:
        """Without the Secret, the next start would make a CA that no node trusts."""
        try:
            found = await self._found_or_made(secrets.CA, lambda: ours)
            differs = found.certificate != ours.certificate
        except ValueError as error:
            raise ValueError(f"{error}; it is left alone, and this cloud core goes on with the CA it has") from error
        if differs:
            raise ValueError(
                f"Secret {secrets.NAMESPACE}/{secrets.CA.name} holds another CA than this cloud core runs with: "
                "restart it, and have every node join again"
            )

    async def _write_back(self, kind: PairSecret, pair: Issued) -> None:
        secret = await secrets.find(self._client, kind.name)
        if secret is None:
            await secrets.create(self._client, kind.name, kind.data(pair))
            return
        try:
            if kind.pair(secret).certificate == pair.certificate:
                return
        except ValueError as error:
            logger.warning("%s", error)
        logger.warning(
            "Secret %s/%s is replaced by this machine's files: all replicas are to have the same files, or none",
            secrets.NAMESPACE,
            kind.name,
        )
        await secrets.replace(self._client, secret, kind.data(pair))

    def _take(self, pair: Issued) -> None:
        if pair.certificate == self._server.certificate:
            return
        self._server = pair
        for context in self._contexts:
            tls.load_pair(context, self._pair())
        logger.info("server certificate changed: for %s", ", ".join(certificates.names_of(pair.certificate)))

    def _pair(self) -> bytes:
        certificate, key = certificates.pem(self._server)
        return certificate + key

    def _ends(self) -> dict[tuple[str, ...], float]:
        return {
            ("ca",): self._ca.not_valid_after_utc.timestamp(),
            ("server",): self._server.certificate.not_valid_after_utc.timestamp(),
        }


def _not_issued(certificate: x509.Certificate, ca: x509.Certificate) -> str:
    """Empty: it is `ca`'s."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return "it is of another CA than the one"
    return ""
