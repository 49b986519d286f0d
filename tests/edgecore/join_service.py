"""The cloud's HTTPS join service on a real TLS socket, as channel contract 3.3 to 3.6 have it, with faults to order."""

import asyncio
import base64
import datetime
import hashlib
import hmac
import json
import ssl
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudedge.certificates import load
from cloudedge.tls import common_name


class JoinService:
    """`directory`: what `mint` wrote. Start and stop it with `async with`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = load(directory, "ca")
        self.lifetime_s = 365 * 24 * 3600.0
        self.begins_s = -3600.0
        """From now, as its end is."""
        self.known_nodes: set[str] = set()
        self.refusing: int = 0
        self.other_name = ""
        self.requests: list[tuple[str, str]] = []
        """Path, and who asked: `token`, or the common name of a certificate."""
        self.issued: list[x509.Certificate] = []
        self.changed = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def token(self, *, valid_s: float = 3600, ca_hash: str = "") -> str:
        der = self._ca.certificate.public_bytes(serialization.Encoding.DER)
        parts = [{"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time() + valid_s)}]
        signed = b".".join(_b64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        return f"{ca_hash or hashlib.sha256(der).hexdigest()}.{(signed + b'.' + self._sign(signed)).decode()}"

    def _sign(self, signed: bytes) -> bytes:
        key = self._ca.key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return _b64(hmac.digest(key, signed, "sha256"))

    async def __aenter__(self) -> "JoinService":
        d = self._directory
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(d / "server.crt", d / "server.key")
        context.load_verify_locations(d / "ca.crt")
        context.verify_mode = ssl.CERT_OPTIONAL
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split()[1]
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            caller = common_name(writer.get_extra_info("peercert"))
            code, answer = self._answer(path, headers, body, caller)
            writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.changed.set()

    def _answer(self, path: str, headers: dict[str, str], body: bytes, caller: str) -> tuple[int, bytes]:
        node = headers.get("nodename", "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        self.requests.append((path, "token" if bearer else caller))
        if path == "/ca.crt":
            return 200, self._ca.certificate.public_bytes(serialization.Encoding.DER)
        if path.startswith("/node/"):
            return (200, b"Node found") if path[6:] in self.known_nodes else (404, b"Node not found")
        if self.refusing:
            return self.refusing, b"not now"
        if bearer:
            signed, _, signature = bearer.rpartition(".")
            claims = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
            if signature.encode() != self._sign(signed.encode()) or claims["exp"] < time.time():
                return 401, b"token is not valid"
        elif caller != f"system:node:{node}":
            return 401, b"certificate is not valid"
        return 200, self._issue(x509.load_der_x509_csr(body), node)

    def _issue(self, request: x509.CertificateSigningRequest, node: str) -> bytes:
        assert request.is_signature_valid
        assert request.subject.rfc4514_string() == (f"CN=system:node:{node},O=system:nodes,L=Hangzhou,ST=Zhejiang,C=CN")
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
                        x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{self.other_name or node}"),
                    ]
                )
            )
            .issuer_name(self._ca.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(seconds=self.begins_s))
            .not_valid_after(now + datetime.timedelta(seconds=self.lifetime_s))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca.key.public_key()), critical=False
            )
            .sign(self._ca.key, hashes.SHA256())
        )
        self.issued.append(certificate)
        return certificate.public_bytes(serialization.Encoding.DER)


def _b64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
