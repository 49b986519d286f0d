"""The kinds of the API that a node has to do with, and how they are called on the channel."""

from __future__ import annotations

from typing import Final

from cloudcore.kube import Key, Kind
from cloudedge import MalformedMessage
from cloudedge.resources import ObjectPath, object_path
from cloudedge.tls import NODE_NAME

__all__ = [
    "CLAIMS",
    "CONFIG_MAPS",
    "EDGE_LABEL",
    "EVENTS",
    "KINDS",
    "LEASES",
    "LEASE_NAMESPACE",
    "NODES",
    "PODS",
    "SECRETS",
    "SERVICE_ACCOUNTS",
    "SIGNING_REQUESTS",
    "VOLUMES",
    "VOLUME_ATTACHMENTS",
    "is_name",
    "key_at",
    "path_of",
    "read_path",
]

NODES: Final = Kind(group="", version="v1", plural="nodes", kind="Node")
PODS: Final = Kind(group="", version="v1", plural="pods", kind="Pod")
CONFIG_MAPS: Final = Kind(group="", version="v1", plural="configmaps", kind="ConfigMap")
SECRETS: Final = Kind(group="", version="v1", plural="secrets", kind="Secret")
CLAIMS: Final = Kind(group="", version="v1", plural="persistentvolumeclaims", kind="PersistentVolumeClaim")
VOLUMES: Final = Kind(group="", version="v1", plural="persistentvolumes", kind="PersistentVolume")
SERVICE_ACCOUNTS: Final = Kind(group="", version="v1", plural="serviceaccounts", kind="ServiceAccount")
EVENTS: Final = Kind(group="", version="v1", plural="events", kind="Event")
LEASES: Final = Kind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
VOLUME_ATTACHMENTS: Final = Kind(
    group="storage.k8s.io", version="v1", plural="volumeattachments", kind="VolumeAttachment"
)
SIGNING_REQUESTS: Final = Kind(
    group="certificates.k8s.io", version="v1", plural="certificatesigningrequests", kind="CertificateSigningRequest"
)

KINDS: Final = {
    kind.kind.lower(): kind
    for kind in (NODES, PODS, CONFIG_MAPS, SECRETS, CLAIMS, VOLUMES, LEASES, VOLUME_ATTACHMENTS, SIGNING_REQUESTS)
}
"""By the type in a resource path."""

_CLUSTER_SCOPED: Final = frozenset({"node", "nodepatch", "persistentvolume"})
_CLUSTER_SCOPED_AS_DEFAULT: Final = frozenset({"certificatesigningrequest", "volumeattachment"})
"""Cluster-scoped too, and yet edge cores put `default` before them (channel contract 5.1, 8.1 #19)."""

EDGE_LABEL: Final = "node-role.kubernetes.io/edge"
LEASE_NAMESPACE: Final = "kube-node-lease"

_UNNAMED: Final = "default/certificatesigningrequest/"


def read_path(resource: str) -> ObjectPath:
    """What a node's request is about, with names that can be names.

    Raises:
        MalformedMessage: It is no path of one object, or a collection where one is asked for.
    """
    # Edge cores leave the naming of a signing request to the API, and its place in the path empty.
    path = object_path(resource.removesuffix("/") if resource.startswith(_UNNAMED) else resource)
    names = [path.name] if _is_cluster_scoped(path) else [path.namespace, path.name]
    if path.type == "podstatus" and not path.name:
        names = [path.namespace]  # several pods in one message
    if path.type == "certificatesigningrequest" and not path.name:
        names = []
    if not all(is_name(name) for name in names):
        raise MalformedMessage(f"{resource[:512]!r} names no object: expected namespace/type/name")
    return path


def is_name(text: object) -> bool:
    """Whether it can stand in the URL of a request."""
    return isinstance(text, str) and NODE_NAME.fullmatch(text) is not None


def key_at(path: ObjectPath) -> Key:
    """Where the object of a path is in the API."""
    return Key("" if _is_cluster_scoped(path) else path.namespace, path.name)


def _is_cluster_scoped(path: ObjectPath) -> bool:
    return path.type in _CLUSTER_SCOPED or path.type in _CLUSTER_SCOPED_AS_DEFAULT


def path_of(kind: Kind, key: Key) -> str:
    """The resource path of an object on its way to a node."""
    return str(ObjectPath(namespace=key.namespace, type=kind.kind.lower(), name=key.name))
