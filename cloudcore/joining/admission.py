"""Whether the holder of a certificate is the node it says it is, and may still come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloudcore.joining.revocations import Revocations
from cloudedge import tls

__all__ = ["NodeAdmission", "identity_refusal"]

LEGACY: Final = ("KubeEdge", "kubeedge.io")
"""Organization and name of upstream's oldest certificates, which are no node's own."""


def identity_refusal(node: str, certificate: Mapping[str, Any] | None, *, strict: bool) -> str:
    """Why a certificate that our CA signed for clients is not `node`'s; empty: it is (channel contract 3.6)."""
    if not certificate:
        return "there is no client certificate"
    organization, name = tls.organization(certificate), tls.common_name(certificate)
    if (organization, name) == (tls.NODES, tls.NODE_PREFIX + node):
        return ""
    if not strict and (organization, name) == LEGACY:
        return ""
    return (
        f"the certificate is for O={organization[:64]}, CN={name[:300]}, not O={tls.NODES}, CN={tls.NODE_PREFIX}{node}"
    )


class NodeAdmission:
    """What the hub asks, when a node comes and whenever the list of revocations has changed."""

    def __init__(self, revocations: Revocations, *, strict: bool) -> None:
        self._revocations = revocations
        self._strict = strict

    def refusal(self, node: str, certificate: Mapping[str, Any] | None, /) -> str:
        """Why not, in words; empty: it may. `certificate` is what `tls.peer_certificate` gives."""
        reason = identity_refusal(node, certificate, strict=self._strict)
        return reason or self._revocations.current.refusal(node, certificate)
