"""Who a pod belongs to and what it refers to: what a node may read follows from the pods bound to it.

As the Node authorizer of Kubernetes draws it, except that secrets which only a volume's CSI driver names are left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Set
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from cloudcore.edgecontroller.kinds import is_name
from cloudcore.kube import Key, Object, identity, key_of, spec_of

__all__ = ["MIRROR_ANNOTATION", "Graph", "Pod", "Reference", "read_pod", "references"]

MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
"""A pod that a node runs by itself, shown in the API."""

_VOLATILE: Final = frozenset({"resourceVersion", "generation", "managedFields"})
"""Metadata that changes with a pod's status."""
_SECRET_REF_SOURCES: Final = ("cephfs", "rbd", "iscsi", "flexVolume", "scaleIO", "storageos")
_encoder: Final = msgspec.json.Encoder(order="sorted")


class Reference(NamedTuple):
    """An object that a pod names. `type` as in resource paths."""

    type: str
    namespace: str
    name: str

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)


class Pod(Struct, frozen=True):
    """What is kept of a pod. The whole of it is asked for when it is sent: with 10,000 nodes they would not fit."""

    key: Key
    uid: str
    node: str
    service_account: str
    references: frozenset[Reference]
    print: bytes
    """Another one when anything but the status changed."""
    is_mirror: bool = False
    """The node made it itself."""


def read_pod(pod: Object) -> Pod:
    key, spec = key_of(pod), spec_of(pod)
    metadata = {name: value for name, value in (pod.get("metadata") or {}).items() if name not in _VOLATILE}
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    return Pod(
        key=key,
        uid=identity(pod),
        node=str(spec.get("nodeName") or ""),
        service_account=str(account),
        references=frozenset(references(pod)),
        print=hashlib.blake2b(_encoder.encode([metadata, spec]), digest_size=12).digest(),
        is_mirror=MIRROR_ANNOTATION in (metadata.get("annotations") or {}),
    )


def references(pod: Object) -> Iterator[Reference]:
    """ConfigMaps, Secrets and PersistentVolumeClaims that a pod names; all in its own namespace."""
    key, spec = key_of(pod), spec_of(pod)

    def found(type_: str, holder: Any, field: str = "name") -> Iterator[Reference]:
        name = holder.get(field) if isinstance(holder, dict) else None
        if is_name(name):
            yield Reference(type_, key.namespace, str(name))

    for secret in _items(spec, "imagePullSecrets"):
        yield from found("secret", secret)
    for list_ in ("initContainers", "containers", "ephemeralContainers"):
        for container in _items(spec, list_):
            for source in _items(container, "envFrom"):
                yield from found("configmap", source.get("configMapRef"))
                yield from found("secret", source.get("secretRef"))
            for variable in _items(container, "env"):
                value = _inner(variable, "valueFrom")
                yield from found("configmap", value.get("configMapKeyRef"))
                yield from found("secret", value.get("secretKeyRef"))
    for volume in _items(spec, "volumes"):
        yield from found("configmap", volume.get("configMap"))
        yield from found("secret", volume.get("secret"), "secretName")
        yield from found("persistentvolumeclaim", volume.get("persistentVolumeClaim"), "claimName")
        if isinstance(volume.get("ephemeral"), dict):
            yield from found("persistentvolumeclaim", {"name": f"{key.name}-{volume.get('name')}"})
        for source in _items(_inner(volume, "projected"), "sources"):
            yield from found("configmap", source.get("configMap"))
            yield from found("secret", source.get("secret"))
        yield from found("secret", _inner(volume, "csi").get("nodePublishSecretRef"))
        yield from found("secret", volume.get("azureFile"), "secretName")
        for kind in _SECRET_REF_SOURCES:
            yield from found("secret", _inner(volume, kind).get("secretRef"))


def _items(holder: Object, field: str) -> Iterator[Object]:
    value = holder.get(field)
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _inner(holder: Object, field: str) -> Object:
    value = holder.get(field)
    return value if isinstance(value, dict) else {}


class Graph:
    """Pods by node, and nodes by what their pods refer to."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[Key, Pod]] = {}
        self._uses: dict[str, Counter[Reference]] = {}
        """By node, how many of its pods refer to an object."""
        self._users: dict[Reference, set[str]] = {}

    def add(self, pod: Pod) -> None:
        self._pods.setdefault(pod.node, {})[pod.key] = pod
        uses = self._uses.setdefault(pod.node, Counter())
        for reference in pod.references:
            uses[reference] += 1
            self._users.setdefault(reference, set()).add(pod.node)

    def remove(self, pod: Pod) -> None:
        """One that was added."""
        del self._pods[pod.node][pod.key]
        uses = self._uses[pod.node]
        for reference in pod.references:
            uses[reference] -= 1
            if not uses[reference]:
                del uses[reference]
                users = self._users[reference]
                users.discard(pod.node)
                if not users:
                    del self._users[reference]
        if not self._pods[pod.node]:
            del self._pods[pod.node], self._uses[pod.node]

    def pod(self, node: str, key: Key) -> Pod | None:
        """A pod that is bound to this very node."""
        return self._pods.get(node, {}).get(key)

    def pods(self, node: str) -> list[Pod]:
        return list(self._pods.get(node, {}).values())

    def refers(self, node: str, reference: Reference) -> bool:
        return reference in self._uses.get(node, ())

    def references(self, node: str) -> Set[Reference]:
        """All that a node's pods refer to."""
        return self._uses.get(node, Counter()).keys()

    def users(self, reference: Reference) -> Set[str]:
        """Nodes with a pod that refers to an object."""
        return self._users.get(reference, set())
