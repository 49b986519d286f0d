"""Built-in kinds beyond the everyday ones, which an edge asks for: volumes, their attachments, signing requests."""

from __future__ import annotations

from kubetwin.apiserver import builtin_columns as show
from kubetwin.apiserver.builtin_schema import CONDITIONS, builtin_kind, listing, struct, text
from kubetwin.apiserver.kinds import Kind

__all__ = ["storage_kinds"]


def storage_kinds() -> tuple[Kind, ...]:
    """Stored and watched; nothing binds a claim, attaches a volume or signs."""
    return (
        builtin_kind(
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            struct(
                "PersistentVolumeClaim is a user's request for and claim to a persistent volume.",
                spec=struct(
                    "What is wanted.",
                    accessModes=listing(text()),
                    storageClassName=text(),
                    volumeName=text("The volume that backs the claim."),
                ),
                status=struct("Current state.", phase=text()),
            ),
            *show.CLAIM,
            short_names=("pvc",),
            has_status=True,
        ),
        builtin_kind(
            "persistentvolumes",
            "PersistentVolume",
            struct(
                "PersistentVolume is a piece of storage of the cluster.",
                spec=struct(
                    "What it is.",
                    accessModes=listing(text()),
                    storageClassName=text(),
                    claimRef=struct("The claim it is bound to.", namespace=text(), name=text()),
                ),
                status=struct("Current state.", phase=text()),
            ),
            *show.VOLUME,
            namespaced=False,
            short_names=("pv",),
            has_status=True,
        ),
        builtin_kind(
            "volumeattachments",
            "VolumeAttachment",
            struct(
                "VolumeAttachment says that a volume is or is to be attached to a node.",
                spec=struct("What and where.", attacher=text(), nodeName=text()),
                status=struct("Current state.", attached={"type": "boolean"}),
            ),
            *show.VOLUME_ATTACHMENT,
            group="storage.k8s.io",
            namespaced=False,
            has_status=True,
        ),
        builtin_kind(
            "certificatesigningrequests",
            "CertificateSigningRequest",
            struct(
                "CertificateSigningRequest asks a signer for a certificate.",
                spec=struct(
                    "The request.", request=text("PKCS #10, PEM, base64."), signerName=text(), usages=listing(text())
                ),
                status=struct("What came of it.", certificate=text(), conditions=CONDITIONS),
            ),
            *show.SIGNING_REQUEST,
            group="certificates.k8s.io",
            namespaced=False,
            short_names=("csr",),
            has_status=True,
            selectable=("spec.signerName",),
        ),
    )
