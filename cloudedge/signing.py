"""What a node asks for when it joins or its certificate nears its end, and what the CA makes of it.

A request is PKCS#10, DER (channel contract 3.3). Upstream's CA signs whatever subject and usage it is asked for; here
the request has to be by the holder of its key, for the node that asks, and for a client's certificate.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudedge.certificates import UNREADABLE, Issued, certify, long_names, node_subject
from cloudedge.errors import ChannelError
from cloudedge.tls import NODE_PREFIX, NODES

__all__ = ["CLIENT_AUTH", "RequestRefused", "make_request", "parse_usages", "sign_request"]

MAX_USAGES: Final = 16
CLIENT_AUTH: Final = 2
_USAGES: Final = {
    1: ExtendedKeyUsageOID.SERVER_AUTH,
    2: ExtendedKeyUsageOID.CLIENT_AUTH,
}
"""Go's numbers, as the header `ExtKeyUsages` has them."""


class RequestRefused(ChannelError):
    """The CA does not sign this, and why."""


def make_request(node: str) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A new P-256 key, and the request (DER) for a certificate of `node` for it, with the subject that upstream's edge
    core asks for (channel contract 3.2).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    place = (
        (NameOID.COUNTRY_NAME, "CN"),
        (NameOID.STATE_OR_PROVINCE_NAME, "Zhejiang"),
        (NameOID.LOCALITY_NAME, "Hangzhou"),
    )
    subject = x509.Name([*(x509.NameAttribute(oid, value) for oid, value in place), *node_subject(node)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER), key


def parse_usages(header: str) -> list[int]:
    """`ExtKeyUsages`, a JSON array of Go's numbers; without it a client's.

    Raises:
        RequestRefused: It is no such array.
    """
    if not header:
        return [CLIENT_AUTH]
    try:
        usages = msgspec.json.decode(header, type=list[int])
    except (msgspec.MsgspecError, UnicodeError):
        raise RequestRefused("header ExtKeyUsages is not a JSON array of numbers, such as [2]") from None
    return usages[:MAX_USAGES] or [CLIENT_AUTH]


def sign_request(
    ca: Issued,
    request: bytes,
    node: str,
    *,
    days: int,
    usages: Sequence[int] = (CLIENT_AUTH,),
    strict: bool = True,
    reserved: Collection[str] = (),
) -> bytes:
    """The certificate (DER) for a request (DER) of `node`. Its subject is always `node`'s, whatever was asked for.

    `strict`: the request must ask for that subject and for nothing but client authentication; its alternative names are
    left out. Else they are taken over, and so are the usages `server` and `client`. `reserved`: addresses that are the
    cloud's own, and no node's to answer at.

    Raises:
        RequestRefused: It is no request, its signature or key is not good, or it asks for what the node cannot have.
    """
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise RequestRefused("the key is not ECDSA P-256")
        if not parsed.is_signature_valid:
            raise RequestRefused("it is not signed with its own key")
        if strict:
            with long_names():
                _check_subject(parsed.subject, node)
        alternatives = None if strict else _alternatives(parsed, reserved)
    except UNREADABLE as error:
        raise RequestRefused(f"it is not a certificate request in DER: {error}") from None
    if strict and set(usages) != {CLIENT_AUTH}:
        raise RequestRefused(f"key usages {list(usages)} are asked for; a node gets client authentication (2) alone")
    if unknown := set(usages) - _USAGES.keys():
        raise RequestRefused(f"key usages {sorted(unknown)} are not signed: only 1 (server) and 2 (client)")
    asked = [_USAGES[usage] for usage in sorted(set(usages))]
    signed = certify(ca, node_subject(node), key, days=days, usages=asked, alternatives=alternatives)
    return signed.public_bytes(serialization.Encoding.DER)


def _check_subject(subject: x509.Name, node: str) -> None:
    names = [str(name.value) for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    organizations = [str(name.value) for name in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if names != [NODE_PREFIX + node] or organizations != [NODES]:
        shown = subject.rfc4514_string()[:256]
        raise RequestRefused(f"subject {shown!r} is not O={NODES}, CN={NODE_PREFIX}{node}")


def _alternatives(
    request: x509.CertificateSigningRequest, reserved: Collection[str]
) -> x509.SubjectAlternativeName | None:
    try:
        found = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    taken = {name.lower().rstrip(".") for name in reserved}
    names = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    names += [name.lower().rstrip(".") for name in found.get_values_for_type(x509.DNSName)]
    for name in names:
        if name in taken or "*" in name:  # with it a node could be the cloud to all others
            raise RequestRefused(f"{name[:253]!r} is not an address of a node")
    return found
