"""Certificate signing requests a node may make: for itself, and for the two signers that are for kubelets."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from cloudcore.edgecontroller.authorization import Refused
from cloudcore.kube import Object, spec_of
from cloudedge.certificates import UNREADABLE
from cloudedge.tls import NODE_PREFIX

__all__ = ["check_signing_request"]

_SIGNERS: Final = frozenset({"kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"})
_ORGANIZATION: Final = "system:nodes"
MAX_CHARS: Final = 64 * 1024
"""Of a request; one for an elliptic-curve key has 600. The signature of a large one takes its time to verify."""


def check_signing_request(node: str, request: Object) -> None:
    """A CertificateSigningRequest whose subject is this node and nothing more.

    Raises:
        Refused: It is for somebody else, for another signer, or cannot be read.
    """
    spec = spec_of(request)
    if str(spec.get("signerName")) not in _SIGNERS:
        raise Refused("certificate", f"node {node} may not ask signer {str(spec.get('signerName'))[:253]!r}")
    text = str(spec.get("request"))
    if len(text) > MAX_CHARS:
        raise Refused("certificate", f"the signing request of node {node} is longer than {MAX_CHARS} characters")
    try:
        pem = base64.b64decode(text, validate=True)
        parsed = x509.load_pem_x509_csr(pem)
        names = [(attribute.oid, attribute.value) for attribute in parsed.subject]
        signed = parsed.is_signature_valid
    except (binascii.Error, *UNREADABLE) as error:
        raise Refused("certificate", f"the signing request of node {node} cannot be read: {error}") from None
    expected = [(NameOID.COMMON_NAME, NODE_PREFIX + node), (NameOID.ORGANIZATION_NAME, _ORGANIZATION)]
    if sorted(names, key=str) != sorted(expected, key=str) or not signed:
        raise Refused("certificate", f"the signing request of node {node} is not for that node")
