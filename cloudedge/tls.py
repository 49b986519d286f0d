"""TLS of the channel: mutual, 1.2 or newer, ECDSA (channel contract 2.2). Identity is the certificate's common name."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = [
    "NODES",
    "NODE_NAME",
    "NODE_PREFIX",
    "ChannelContext",
    "client_context",
    "common_name",
    "load_pair",
    "node_of",
    "organization",
    "peer_certificate",
    "server_context",
    "serving_context",
]

NODE_PREFIX: Final = "system:node:"
NODES: Final = "system:nodes"
"""The organization of all nodes' certificates."""
NODE_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""A Kubernetes object name (RFC 1123 subdomain), as node names are."""
_TLS12_SUITES: Final = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"


class ChannelContext(ssl.SSLContext):
    """Requires a certificate of the other end, and hides that from the transport, which asks for `verify_mode`.

    aiofastnet 1.2 would decode the certificate in each handshake, by way of a file in the directory for temporary ones:
    a third of what a node's coming costs, and no connection at all while that file cannot be written. OpenSSL verifies
    as ever; whoever wants the certificate gets it as DER.
    """

    def __init__(self, protocol: int) -> None:  # noqa: ARG002 - `__new__` has used it
        vars(ssl.SSLContext)["verify_mode"].__set__(self, ssl.CERT_REQUIRED)

    @property
    def verify_mode(self) -> ssl.VerifyMode:  # type: ignore[override]  # it is not to be changed
        return ssl.CERT_NONE


def server_context(*, ca_file: Path, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """For CloudHub: a client certificate of our CA is required.

    Raises:
        OSError, ssl.SSLError: A file is missing or no certificate.
    """
    context = ChannelContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cafile=str(ca_file))
    return _common(context, cert_file, key_file)


def serving_context(ca: bytes, pair: bytes, *, certificate_required: bool) -> ssl.SSLContext:
    """As `server_context`, from memory: `ca` as PEM, `pair` as for `load_pair`. Not required: a client may come without
    a certificate, but not with a bad one.

    Raises:
        ssl.SSLError: One is no certificate, or the key is another's.
    """
    if certificate_required:
        context: ssl.SSLContext = ChannelContext(ssl.PROTOCOL_TLS_SERVER)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=ca.decode("ascii"))
    _limit(context)
    load_pair(context, pair)
    return context


def load_pair(context: ssl.SSLContext, pair: bytes) -> None:
    """Give a context another certificate and key, PEM one after the other. It counts from the next handshake on.

    `ssl` reads files only, and a key that came from memory is not to lie on a disk, however shortly.

    Raises:
        ssl.SSLError: They are none, or do not belong together.
    """
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pair)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def client_context(*, ca_file: Path, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """For EdgeHub: the server's certificate must be of our CA and name the host we dial.

    Raises:
        OSError, ssl.SSLError: A file is missing or no certificate.
    """
    context = ChannelContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(ca_file))
    return _common(context, cert_file, key_file)


def _common(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    _limit(context)
    context.load_cert_chain(cert_file, key_file)
    return context


def _limit(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_SUITES)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2: the other end could have us do the costly part for ever


def peer_certificate(connection: ssl.SSLObject | ssl.SSLSocket | None) -> dict[str, Any] | None:
    """What `getpeercert()` gives, and the SHA-256 of the whole certificate as `sha256`; None: it showed none."""
    certificate: dict[str, Any] | None = connection.getpeercert() if connection is not None else None
    if connection is None or not certificate:
        return None
    return {**certificate, "sha256": hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()}


def common_name(peer_certificate: Mapping[str, Any] | None) -> str:
    """The subject's common name of what `SSLObject.getpeercert()` gives; empty when there is none or several."""
    return _only(peer_certificate, "commonName")


def organization(peer_certificate: Mapping[str, Any] | None) -> str:
    """The subject's organization; empty when there is none or several."""
    return _only(peer_certificate, "organizationName")


def _only(certificate: Mapping[str, Any] | None, name: str) -> str:
    """A member of the subject that stands there once: of several, readers disagree which one counts."""
    found = [str(value) for rdn in (certificate or {}).get("subject", ()) for key, value in rdn if key == name]
    return found[0] if len(found) == 1 else ""


def node_of(peer_certificate: Mapping[str, Any] | None) -> str:
    """The node a certificate is for (`CN=system:node:<node>`); empty when it is not a node's."""
    name = common_name(peer_certificate)
    return name.removeprefix(NODE_PREFIX) if name.startswith(NODE_PREFIX) else ""
