"""Pairs in PEM and DER, and what the CA signs for nodes."""

import datetime
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import certificates, tls
from cloudedge.certificates import Issued
from cloudedge.signing import RequestRefused, make_request, parse_usages, sign_request

CA = certificates.create_ca()
REQUEST, _KEY = make_request("edge-1")


def request(
    subject: dict[str, str], *, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None, san: str = ""
) -> bytes:
    parts = [x509.NameAttribute(getattr(NameOID, name), value) for name, value in subject.items()]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(parts))
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(san)]), critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_der_both_ways_with_upstreams_shapes() -> None:
    certificate, key = certificates.der(CA)
    assert certificates.from_der(certificate, key).certificate == CA.certificate
    text = serialization.load_der_private_key(key, None)
    assert isinstance(text, ec.EllipticCurvePrivateKey)
    assert key[:7] == bytes.fromhex("30770201010420"), "SEC1, not PKCS#8"
    _, other = certificates.der(certificates.create_ca())
    for wrong in ((certificate, other), (b"", key), (certificate, b"\x30"), (key, certificate)):
        with pytest.raises(ValueError, match=r"."):
            certificates.from_der(*wrong)


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    certificates.save(CA, tmp_path, "one")
    certificates.save(certificates.create_ca(), tmp_path, "two")
    with pytest.raises(ValueError, match=r"one\.crt.*not the certificate's"):
        certificates.load_files(tmp_path / "one.crt", tmp_path / "two.key")


def test_only_elliptic_curve_keys_are_taken() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(ValueError, match="elliptic-curve"):
        certificates.from_der(certificates.der(CA)[0], raw)


def test_server_names() -> None:
    server = certificates.sign_server(CA, ["127.0.0.1", "", "Cloud.example", "::1"]).certificate
    assert certificates.names_of(server) == ["127.0.0.1", "::1", "Cloud.example"]
    assert certificates.covers(server, ["cloud.example", "0:0:0:0:0:0:0:1", "", "127.0.0.1"])
    assert not certificates.covers(server, ["127.0.0.2"])
    assert not certificates.covers(CA.certificate, ["127.0.0.1"])


def test_a_nodes_request_is_signed() -> None:
    signed = x509.load_der_x509_certificate(sign_request(CA, REQUEST, "edge-1", days=7))
    signed.verify_directly_issued_by(CA.certificate)
    assert signed.subject.rfc4514_string() == "CN=system:node:edge-1,O=system:nodes"
    assert usages(signed) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    left = signed.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=6, hours=23) < left <= datetime.timedelta(days=7)


def test_a_long_node_name() -> None:
    node = "n" * 253
    signed = x509.load_der_x509_certificate(sign_request(CA, make_request(node)[0], node, days=7))
    with certificates.long_names():
        assert signed.subject == certificates.node_subject(node)


def test_upstreams_request_has_more_in_its_subject() -> None:
    parts = {"COUNTRY_NAME": "CN", "LOCALITY_NAME": "Hangzhou", "STATE_OR_PROVINCE_NAME": "Zhejiang"}
    asked = request({**parts, **NODE})
    signed = x509.load_der_x509_certificate(sign_request(CA, asked, "edge-1", days=7))
    assert signed.subject == certificates.node_subject("edge-1")


def test_no_certificate_outlives_its_ca() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = certificates.node_subject("x")
    short = Issued(certificates.certify(CA, name, key.public_key(), days=1, usages=[]), key)
    signed = x509.load_der_x509_certificate(sign_request(short, REQUEST, "edge-1", days=365))
    assert signed.not_valid_after_utc == short.certificate.not_valid_after_utc


NODE = {"ORGANIZATION_NAME": "system:nodes", "COMMON_NAME": "system:node:edge-1"}


def damaged() -> bytes:
    """A request whose signature is somebody else's."""
    return REQUEST[:-1] + bytes([REQUEST[-1] ^ 1])


@pytest.mark.parametrize(
    ("asked", "why"),
    (
        (request(NODE | {"COMMON_NAME": "system:node:edge-2"}), "subject"),
        (request(NODE | {"ORGANIZATION_NAME": "system:masters"}), "subject"),
        (request({"COMMON_NAME": "system:node:edge-1"}), "subject"),
        (request({"ORGANIZATION_NAME": "KubeEdge", "COMMON_NAME": "kubeedge.io"}), "subject"),
        (request({}), "subject"),
        (damaged(), "not signed with its own key|not a certificate request"),
        (request(NODE, key=rsa.generate_private_key(65537, 2048)), "P-256"),
        (request(NODE, key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (b"", "DER"),
        (REQUEST[:-10], "DER"),
        (certificates.der(CA)[0], "DER"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_signed(asked: bytes, why: str) -> None:
    with pytest.raises(RequestRefused, match=why):
        sign_request(CA, asked, "edge-1", days=7)


@pytest.mark.parametrize("wanted", ([1], [1, 2], [0], [2, 9]))
def test_a_node_gets_client_authentication_alone(wanted: list[int]) -> None:
    with pytest.raises(RequestRefused, match="usages"):
        sign_request(CA, REQUEST, "edge-1", days=7, usages=wanted)


def test_for_an_old_cluster_subject_and_usages_are_not_looked_at() -> None:
    asked = request({"COMMON_NAME": "anything"}, san="other.example")
    signed = sign_request(CA, asked, "edge-1", days=7, usages=[1, 2], strict=False)
    certificate = x509.load_der_x509_certificate(signed)
    assert certificate.subject == certificates.node_subject("edge-1"), "which is always ours to write"
    assert set(usages(certificate)) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert certificates.names_of(certificate) == ["other.example"]
    with pytest.raises(RequestRefused, match="usages"):
        sign_request(CA, REQUEST, "edge-1", days=7, usages=[0], strict=False)
    with pytest.raises(RequestRefused):
        sign_request(CA, damaged(), "edge-1", days=7, strict=False)


def test_alternative_names_are_not_copied() -> None:
    signed = sign_request(CA, request(NODE, san="cloud.example"), "edge-1", days=7)
    assert certificates.names_of(x509.load_der_x509_certificate(signed)) == []


def test_usages_of_the_header() -> None:
    assert parse_usages("") == parse_usages("[]") == parse_usages("[2]") == [2]
    for wrong in ("2", "[2", '["2"]', "{}", "é"):
        with pytest.raises(RequestRefused):
            parse_usages(wrong)


@given(st.binary(max_size=300) | st.binary(min_size=1, max_size=4).flatmap(lambda cut: st.just(REQUEST + cut)))
def test_any_other_bytes_are_refused_and_nothing_more(asked: bytes) -> None:
    with pytest.raises(RequestRefused):
        sign_request(CA, asked, "edge-1", days=7)


@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_a_damaged_request_is_refused_or_still_the_nodes(at: int, flip: int) -> None:
    asked = bytearray(REQUEST)
    asked[at] ^= flip
    with pytest.raises(RequestRefused):
        sign_request(CA, bytes(asked), "edge-1", days=7)


def test_a_pair_from_memory(tmp_path: Path) -> None:
    server = b"".join(certificates.pem(certificates.sign_server(CA, ["127.0.0.1"])))
    context = tls.serving_context(certificates.pem(CA)[0], server, certificate_required=True)
    assert vars(ssl.SSLContext)["verify_mode"].__get__(context) is ssl.CERT_REQUIRED, "whatever the transport is told"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ssl.SSLError):
        tls.load_pair(context, certificates.pem(CA)[0] + certificates.pem(certificates.create_ca())[1])


def test_what_is_shown_of_a_certificate_is_what_tls_says_of_it(tmp_path: Path) -> None:
    long = "n" * 200  # X.520 allows 64
    issued = certificates.sign_node(CA, long)
    der = certificates.der(issued)[0]
    file = tmp_path / "node.crt"
    file.write_bytes(certificates.pem(issued)[0])
    said = ssl._ssl._test_decode_cert(str(file))  # type: ignore[attr-defined]  # what `getpeercert` is made with
    shown = certificates.shown(der)
    assert shown is not None
    assert (tls.node_of(shown), tls.organization(shown)) == (long, tls.NODES)
    assert (tls.node_of(said), tls.organization(said)) == (long, tls.NODES)
    assert shown["serialNumber"].lstrip("0") == said["serialNumber"].lower().lstrip("0")
    assert shown["sha256"] == hashlib.sha256(der).hexdigest()
    assert certificates.shown(b"") is None
    assert certificates.shown(der[:-1]) is None


def test_of_a_name_that_stands_there_twice_none_counts() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{name}") for name in ("a", "b")])
    both = certificates.certify(CA, subject, CA.key.public_key(), days=1, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
    shown = certificates.shown(both.public_bytes(serialization.Encoding.DER))
    assert (tls.common_name(shown), tls.node_of(shown)) == ("", "")
