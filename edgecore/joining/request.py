"""Asks the cloud for its CA and for a certificate (channel contract 3.3 to 3.6).

Only the child of a running edge core and `kubetwin join` import this: it needs `cryptography` and an HTTP client.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from msgspec import Struct

from cloudedge.signing import make_request
from edgecore.joining.identity import NodeFiles

__all__ = ["Ca", "Certified", "JoinError", "Token", "ask_node", "certify", "fetch_ca", "read_token", "servers_of"]

TIMEOUT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 1024 * 1024


class JoinError(Exception):
    """The text says what is wrong and what to do. `final`: the same request will fail again."""

    def __init__(self, problem: str, *, final: bool = False) -> None:
        super().__init__(problem)
        self.final = final


class Token(Struct, frozen=True):
    """A join token: which CA is to be trusted, and a JWT that the cloud gave out."""

    ca_hash: str
    bearer: str

    def __repr__(self) -> str:
        return "Token(…)"

    def ended(self) -> str:
        """When it has expired, by this machine's clock; empty: it has not, or does not say."""
        payload = self.bearer.split(".")[1]
        try:
            expires = float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
            return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires)) if expires < time.time() else ""
        except (ValueError, KeyError, TypeError, OverflowError):
            return ""


class Ca(Struct, frozen=True):
    pem: bytes
    context: ssl.SSLContext
    """That trusts this CA and nothing else."""


class Certified(Struct, frozen=True):
    key: bytes
    """PEM, as the next."""
    certificate: bytes


def servers_of(text: str) -> list[str]:
    """`https://host:port` of `edgeHub.httpServer`, one or several with commas between.

    Raises:
        JoinError: One is something else.
    """
    servers = [part.strip().rstrip("/") for part in text.split(",") if part.strip()]
    for server in servers:
        try:
            parts = urllib.parse.urlsplit(server)
            usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise JoinError(f"edgeHub.httpServer {server!r} is not of the form https://host:port", final=True)
    if not servers:
        raise JoinError("edgeHub.httpServer is empty: it says where to join, https://host:port", final=True)
    return servers


def read_token(text: str) -> Token:
    """Raises:
    JoinError: It is no token. The text does not contain it.
    """
    parts = text.strip().split(".")
    if len(parts) != 4 or not all(parts) or not text.isascii() or not text.strip().isprintable():
        raise JoinError(
            "the join token is not complete: it has four parts with dots between; take it as `kubetwin token`, or"
            " `keadm gettoken`, prints it",
            final=True,
        )
    return Token(ca_hash=parts[0].lower(), bearer=".".join(parts[1:]))


def fetch_ca(server: str, token: Token) -> Ca:
    """The cloud's CA, which is the one that the token names.

    Raises:
        JoinError: It is not, or nobody answers.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE  # what comes is checked against the token's hash
    answer = _get(f"{server}/ca.crt", unverified)
    if answer.code != 200:
        raise JoinError(f"{server}/ca.crt answered {answer.said()}: is this CloudCore's HTTPS port?")
    if not hmac.compare_digest(hashlib.sha256(answer.body).hexdigest(), token.ca_hash):
        raise JoinError(
            f"the CA at {server} is not the one the join token is of: the token is of another cluster, or somebody is"
            " in between; take a new one with `kubetwin token`",
            final=True,
        )
    try:
        pem = x509.load_der_x509_certificate(answer.body).public_bytes(serialization.Encoding.PEM)
        return Ca(pem, trusting(pem.decode()))
    except (ValueError, ssl.SSLError) as error:
        raise JoinError(f"{server}/ca.crt is not a certificate: {error}", final=True) from error


def trusting(ca_pem: str) -> ssl.SSLContext:
    """For a server whose certificate is of this CA and names the host we dial.

    Raises:
        ssl.SSLError: It is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def identified(files: NodeFiles) -> ssl.SSLContext:
    """As `trusting`, and we show the certificate that is there.

    Raises:
        JoinError: It cannot be used.
    """
    try:
        context = trusting(Path(files.ca).read_text())
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:
        raise JoinError(f"{files} cannot be used to ask for a new certificate: {error}", final=True) from error
    return context


def certify(server: str, node: str, context: ssl.SSLContext, token: Token | None = None) -> Certified:
    """A new key, and the cloud's certificate for it. Without token the context shows a certificate.

    Raises:
        JoinError: The cloud refused, or nobody answered.
    """
    request, key = make_request(node)
    headers = {"NodeName": node}
    if token is not None:
        headers["Authorization"] = f"Bearer {token.bearer}"
    answer = _get(f"{server}/edge.crt", context, request, headers)
    if answer.code != 200:
        raise _refusal(f"{server}/edge.crt answered {answer.said()}", answer.code, token)
    try:
        certificate = x509.load_der_x509_certificate(answer.body)
    except ValueError as error:
        raise JoinError(f"{server}/edge.crt is not a certificate: {error}") from error
    return Certified(
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ),
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
    )


def ask_node(server: str, node: str, context: ssl.SSLContext) -> bool:
    """Whether the cloud has a node of that name.

    Raises:
        JoinError: It does not say.
    """
    answer = _get(f"{server}/node/{urllib.parse.quote(node, safe='')}", context)
    if answer.code not in (200, 404):
        raise JoinError(f"{server}/node/{node} answered {answer.said()}")
    return answer.code == 200


def _refusal(said: str, code: int, token: Token | None) -> JoinError:
    if code not in (401, 403):
        return JoinError(said)
    if "revoked" in said:
        todo = "somebody shut this out on purpose, in ConfigMap kubeedge/kubetwin-revoked; ask who runs the cloud"
        return JoinError(f"{said}: {todo}", final=True)
    if token is None:
        return JoinError(
            f"{said}: the cloud does not take this node's certificate; join again with a token", final=True
        )
    if ended := token.ended():
        return JoinError(f"{said}: the join token ended at {ended}; make a new one with `kubetwin token`", final=True)
    return JoinError(f"{said}: make a new join token with `kubetwin token`", final=True)


class _Answer(Struct, frozen=True):
    code: int
    body: bytes

    def said(self) -> str:
        words = "".join(c if c.isprintable() else " " for c in self.body[:200].decode(errors="replace")).strip()
        return f"{self.code} {words!r}" if words else str(self.code)


def _get(
    url: str, context: ssl.SSLContext, body: bytes | None = None, headers: dict[str, str] | None = None
) -> _Answer:
    """Raises:
    JoinError: Nobody answers, or not in HTTP, or the certificate is not of whom we dial.
    """
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path, body=body, headers=headers or {})
        answer = connection.getresponse()
        content = answer.read(MAX_ANSWER_BYTES + 1)
        code = answer.status
    except ssl.SSLCertVerificationError as error:
        said = str(error.verify_message).rstrip(".")
        raise JoinError(
            f"{host}:{port} is not trusted: {said}; its certificate must be of the cloud's CA and name {host} (see"
            " cloudHub.advertiseAddress and dnsNames in cloudcore.yaml), and this machine's clock be right"
        ) from error
    except (http.client.HTTPException, ssl.SSLError) as error:  # somebody is there
        raise JoinError(f"{host}:{port} cannot be asked: {_words(error)}; is it CloudCore's HTTPS port?") from error
    except (OSError, ValueError) as error:
        raise JoinError(f"{host}:{port} cannot be asked: {_words(error)}") from error
    finally:
        connection.close()
    if len(content) > MAX_ANSWER_BYTES:
        raise JoinError(f"{url} answered more than {MAX_ANSWER_BYTES} bytes")
    return _Answer(code, content)


def _words(error: Exception) -> Any:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or repr(error)
