"""What makes a server trusted: its own CA and certificate, the admin token, and the kubeconfig that names all three.

Everything lies in the data directory, keys and token readable by the owner only. Files appear whole or not at all.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import ssl
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=3000)  # on loopback nothing is gained by short lives, and a gateway may run for years
_RENEW_BEFORE = timedelta(days=365)
_SKEW = timedelta(hours=1)


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, replacing an old one in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def admin_token(path: Path) -> str:
    """The token in the file, made on first use."""
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        write_private(path, token.encode())
    return token


def server_context(folder: Path, host: str) -> ssl.SSLContext:
    """TLS for a server on `host`. The CA lives as long as the folder; the certificate is renewed before it ends."""
    folder.mkdir(mode=0o700, exist_ok=True)
    ca_cert, ca_key = folder / "ca.crt", folder / "ca.key"
    cert, key = folder / "server.crt", folder / "server.key"
    if not (ca_cert.exists() and ca_key.exists()):
        _make_ca(ca_cert, ca_key)
        cert.unlink(missing_ok=True)
    if not (cert.exists() and key.exists() and _is_good(cert, host)):
        _make_server(cert, key, ca_cert, ca_key, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make_ca(cert_file: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    name = _name("kubetwin-apiserver-ca")
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)  # sign, certify, CRLs
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_file, _pem(key))
    write_private(cert_file, cert.public_bytes(serialization.Encoding.PEM))


def _make_server(cert_file: Path, key_file: Path, ca_cert_file: Path, ca_key_file: Path, host: str) -> None:
    ca = x509.load_pem_x509_certificate(ca_cert_file.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{ca_key_file} is not the key this server made: remove {ca_key_file.parent} to have a new CA")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    cert = (
        x509.CertificateBuilder()
        .subject_name(_name("kubetwin-apiserver"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _SERVER_LIFE)
        .add_extension(x509.SubjectAlternativeName(_alternatives(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(key_file, _pem(key))
    write_private(cert_file, cert.public_bytes(serialization.Encoding.PEM))


def _alternatives(host: str) -> list[x509.GeneralName]:
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", host))
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _is_good(cert_file: Path, host: str) -> bool:
    try:
        cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    wanted = set(_alternatives(host))
    return wanted <= set(names) and cert.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE


def kubeconfig(url: str, ca_cert: Path, token: str) -> bytes:
    """A kubeconfig for the admin."""
    cluster = {"server": url, "certificate-authority-data": b64encode(ca_cert.read_bytes()).decode()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubetwin", "cluster": cluster}],
        "users": [{"name": "kubetwin-admin", "user": {"token": token}}],
        "contexts": [
            {"name": "kubetwin", "context": {"cluster": "kubetwin", "user": "kubetwin-admin", "namespace": "default"}}
        ],
        "current-context": "kubetwin",
    }
    return yaml.safe_dump(config, sort_keys=False).encode()
