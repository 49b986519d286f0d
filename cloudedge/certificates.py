"""The channel's certificates: a CA, the cloud's server certificate, one client certificate per node.

Shapes are upstream's (channel contract 3.2), except that validity starts an hour early, because edge clocks lag.
This is the one module that needs `cryptography`; a running edge core never imports it, the process that joins does.
What a node asks for when it joins is in `cloudedge.signing`.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from cloudedge.tls import NODE_PREFIX, NODES

__all__ = [
    "UNREADABLE",
    "Issued",
    "certify",
    "covers",
    "create_ca",
    "der",
    "from_der",
    "load",
    "load_files",
    "long_names",
    "mint",
    "names_of",
    "node_subject",
    "pem",
    "save",
    "shown",
    "sign_node",
    "sign_server",
]

UNREADABLE: Final = (
    ValueError,
    TypeError,  # a key that asks for a password
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that it cannot use."""
_SHOWN: Final = {NameOID.COMMON_NAME: "commonName", NameOID.ORGANIZATION_NAME: "organizationName"}
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
    """The cloud's certificate. `names`: the IP addresses and DNS names that edges dial; empty ones are left out.

    Raises:
        ValueError: A name cannot stand in a certificate.
    """
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "KubeEdge"), x509.NameAttribute(NameOID.COMMON_NAME, "KubeEdge")]
    )
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names if name])
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    return Issued(certify(ca, subject, key.public_key(), days=CA_DAYS, usages=usages, alternatives=alternatives), key)


def sign_node(ca: Issued, node: str, *, days: int = NODE_DAYS) -> Issued:
    """A node's client certificate: O=system:nodes, CN=system:node:<node>."""
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return Issued(certify(ca, node_subject(node), key.public_key(), days=days, usages=usages), key)


def node_subject(node: str) -> x509.Name:
    with long_names():
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, NODES),
                x509.NameAttribute(NameOID.COMMON_NAME, NODE_PREFIX + node, _validate=False),
            ]
        )


@contextmanager
def long_names() -> Iterator[None]:
    """X.520 ends common names at 64 characters. Names of nodes may be longer, and neither Go nor OpenSSL minds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
        yield


def shown(der: bytes) -> dict[str, Any] | None:
    """What `tls.peer_certificate` gives, as far as it is asked for here, of a certificate that TLS has verified: its
    subject's common names and organizations, its serial number, and its SHA-256. None: it cannot be read.
    """
    try:
        with long_names():
            certificate = x509.load_der_x509_certificate(der)
            subject = tuple(
                tuple((_SHOWN[attribute.oid], attribute.value) for attribute in rdn if attribute.oid in _SHOWN)
                for rdn in certificate.subject.rdns
            )
    except UNREADABLE:
        return None
    return {
        "subject": subject,
        "serialNumber": f"{certificate.serial_number:x}",
        "sha256": hashlib.sha256(der).hexdigest(),
    }


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
    certificate, key = pem(issued)
    _write(directory / f"{name}.key", key, 0o600)
    _write(directory / f"{name}.crt", certificate, 0o644)


def load(directory: Path, name: str) -> Issued:
    """Read what `save` wrote.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not a certificate or not an elliptic-curve key, or the two do not belong together.
    """
    return load_files(directory / f"{name}.crt", directory / f"{name}.key")


def load_files(cert_file: Path, key_file: Path) -> Issued:
    """Read a pair of PEM files; raises as `load`."""
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        return _pair(x509.load_pem_x509_certificate(cert_file.read_bytes()), key)
    except UNREADABLE as error:
        raise ValueError(f"{cert_file} and {key_file}: {error}") from error


def pem(issued: Issued) -> tuple[bytes, bytes]:
    """Certificate and key (`EC PRIVATE KEY`), as files hold them."""
    key = issued.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return issued.certificate.public_bytes(serialization.Encoding.PEM), key


def der(issued: Issued) -> tuple[bytes, bytes]:
    """Certificate and SEC1 key, as the cluster's Secrets hold them (channel contract 3.1)."""
    key = issued.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return issued.certificate.public_bytes(serialization.Encoding.DER), key


def from_der(certificate: bytes, key: bytes) -> Issued:
    """The reverse of `der`.

    Raises:
        ValueError: One is not what it should be, or the two do not belong together.
    """
    try:
        return _pair(x509.load_der_x509_certificate(certificate), serialization.load_der_private_key(key, None))
    except UNREADABLE as error:
        raise ValueError(str(error)) from error


def names_of(certificate: x509.Certificate) -> list[str]:
    """The IP addresses and DNS names it is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return addresses + [name for name in found.get_values_for_type(x509.DNSName) if name]


def covers(certificate: x509.Certificate, names: Iterable[str]) -> bool:
    """Whether a client may dial every one of `names`; empty ones do not count."""
    have = {name.lower() for name in names_of(certificate)}
    return all(str(_general_name(name).value).lower() in have for name in names if name)


def _pair(certificate: x509.Certificate, key: object) -> Issued:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic-curve key")
    if certificate.public_key() != key.public_key():
        raise ValueError("the key is not the certificate's")
    return Issued(certificate, key)


def certify(
    ca: Issued,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    days: int,
    usages: Iterable[x509.ObjectIdentifier],
    alternatives: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    """A certificate of `ca`, which it does not outlive."""
    builder = (
        _builder(subject, ca.certificate.subject, public_key, days, last=ca.certificate.not_valid_after_utc)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        # Python's strict verification (the default since 3.13) wants the issuer's key named.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: int,
    *,
    last: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(end if last is None else min(end, last))
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
