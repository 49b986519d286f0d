"""The channel's certificates: a CA, the cloud's server certificate, one client certificate per node.

Shapes are upstream's (channel contract 3.2), except that validity starts an hour early, because edge clocks lag.
This is the one module that needs `cryptography`; an edge core never imports it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from cloudedge.tls import NODE_PREFIX

__all__ = ["Issued", "create_ca", "load", "mint", "save", "sign_node", "sign_server"]

CA_DAYS: Final = 36_400
NODE_DAYS: Final = 365
_BACKDATE: Final = datetime.timedelta(hours=1)


class Issued(Struct, frozen=True):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_ca() -> Issued:
    """A self-signed CA: CN=KubeEdge, P-256."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "KubeEdge")])
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def sign_server(ca: Issued, names: Sequence[str]) -> Issued:
    """The cloud's certificate. `names`: the IP addresses and DNS names that edges dial."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "KubeEdge"), x509.NameAttribute(NameOID.COMMON_NAME, "KubeEdge")]
    )
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    return _issue(ca, subject, CA_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, [alternatives])


def sign_node(ca: Issued, node: str) -> Issued:
    """A node's client certificate: O=system:nodes, CN=system:node:<node>."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, NODE_PREFIX + node),
        ]
    )
    return _issue(ca, subject, NODE_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, [])


def mint(directory: Path, *, nodes: Iterable[str], names: Sequence[str]) -> None:
    """Everything for a cloud and its nodes on one machine. A CA that is there is kept, to add nodes later.

    Writes `ca.crt`, `ca.key`, `server.crt`, `server.key` and `<node>.crt`, `<node>.key`, PEM, keys with mode 0600.

    Raises:
        ValueError: A node's name is no file name of its own; nothing is written then.
    """
    nodes = list(nodes)
    for node in nodes:
        if node in ("", "ca", "server") or "/" in node:
            raise ValueError(f"{node!r} cannot be a node here: its files would be others' ({directory})")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / "ca.crt").exists() and (directory / "ca.key").exists():
        ca = load(directory, "ca")
    else:
        ca = create_ca()
        save(ca, directory, "ca")
    save(sign_server(ca, names), directory, "server")
    for node in nodes:
        save(sign_node(ca, node), directory, node)


def save(issued: Issued, directory: Path, name: str) -> None:
    """Write `<name>.crt` and `<name>.key`, the key first and readable by its owner only."""
    key = issued.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    _write(directory / f"{name}.key", key, 0o600)
    _write(directory / f"{name}.crt", issued.certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def load(directory: Path, name: str) -> Issued:
    """Read what `save` wrote.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not a certificate or not a P-256 key.
    """
    key = serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{directory / f'{name}.key'} is not an elliptic-curve key")
    return Issued(x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes()), key)


def _issue(
    ca: Issued,
    subject: x509.Name,
    days: int,
    usage: x509.ObjectIdentifier,
    extensions: Iterable[x509.ExtensionType],
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(subject, ca.certificate.subject, key.public_key(), days)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        # Python's strict verification (the default since 3.13) wants the issuer's key named.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Issued(builder.sign(ca.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        key_cert_sign=sign_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
