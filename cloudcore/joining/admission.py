"""Whether the holder of a certificate is the node it says it is, and may still come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from cloudcore.joining.revocations import Revocations
from cloudedge import tls

__all__ = ["NodeAdmission", "RevocationsFirst", "identity_refusal"]

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


class _Owners(Protocol):
    def acquire_now(self, node: str, /) -> bool: ...

    async def acquire(self, node: str, /) -> None: ...

    def released(self, node: str, /) -> None: ...


class RevocationsFirst:
    """The hub's `Owners`, by which no node is served before the list of revocations has been read: until then it shuts
    nobody out.
    """

    def __init__(self, owners: _Owners, revocations: Revocations) -> None:
        self._owners = owners
        self._revocations = revocations

    def acquire_now(self, node: str, /) -> bool:
        return self._revocations.known and self._owners.acquire_now(node)

    async def acquire(self, node: str, /) -> None:
        await self._revocations.until_known()
        await self._owners.acquire(node)

    def released(self, node: str, /) -> None:
        self._owners.released(node)
