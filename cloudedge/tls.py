"""TLS of the channel: mutual, 1.2 or newer, ECDSA (channel contract 2.2). Identity is the certificate's common name."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["NODE_PREFIX", "client_context", "common_name", "node_of", "server_context"]

NODE_PREFIX: Final = "system:node:"
_TLS12_SUITES: Final = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"


def server_context(*, ca_file: Path, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """For CloudHub: a client certificate of our CA is required.

    Raises:
        OSError, ssl.SSLError: A file is missing or no certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca_file))
    context.verify_mode = ssl.CERT_REQUIRED
    return _common(context, cert_file, key_file)


def client_context(*, ca_file: Path, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """For EdgeHub: the server's certificate must be of our CA and name the host we dial.

    Raises:
        OSError, ssl.SSLError: A file is missing or no certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca_file))
    return _common(context, cert_file, key_file)


def _common(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_SUITES)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert_file, key_file)
    return context


def common_name(peer_certificate: Mapping[str, Any] | None) -> str:
    """The subject's common name of what `SSLObject.getpeercert()` gives; empty when there is none."""
    for relative_name in (peer_certificate or {}).get("subject", ()):
        for key, value in relative_name:
            if key == "commonName":
                return str(value)
    return ""


def node_of(peer_certificate: Mapping[str, Any] | None) -> str:
    """The node a certificate is for (`CN=system:node:<node>`); empty when it is not a node's."""
    name = common_name(peer_certificate)
    return name.removeprefix(NODE_PREFIX) if name.startswith(NODE_PREFIX) else ""
