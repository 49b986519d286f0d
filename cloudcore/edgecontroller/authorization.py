"""What a node may read and write through the channel. Pure: facts in, a `Refused` out, or nothing.

The rules are those of Kubernetes' Node authorizer and its NodeRestriction admission, applied here because the cloud
core asks the API in its own name: to the API all nodes look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloudcore.edgecontroller.graph import MIRROR_ANNOTATION, Graph, Reference, references
from cloudcore.edgecontroller.kinds import EDGE_LABEL, LEASE_NAMESPACE
from cloudcore.kube import Key, Object, identity, key_of, spec_of
from cloudedge.resources import ObjectPath

__all__ = [
    "Refused",
    "check_attachment",
    "check_event",
    "check_labels",
    "check_lease",
    "check_mirror_pod",
    "check_node",
    "check_node_object",
    "check_pod",
    "check_reference",
    "check_token",
    "check_volume",
    "narrow_patch",
]


class Refused(Exception):
    """`reason` is one of a fixed set, for counting; the text is for the node and whoever reads the audit."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


_ROLES: Final = frozenset({EDGE_LABEL, "node-role.kubernetes.io/agent"})
"""The roles that edge cores give themselves; others say where an operator wants workloads to run."""
_OWN_LABELS: Final = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
    }
)
_OWN_PREFIXES: Final = ("kubelet.kubernetes.io", "node.kubernetes.io")
"""With subdomains of them; all as in NodeRestriction."""
_RESERVED: Final = ("kubernetes.io", "k8s.io")


def check_node(node: str, name: str) -> None:
    if name != node:
        raise Refused("another node", f"node {node} has no say about node {name[:253]!r}")


def check_lease(node: str, key: Key) -> None:
    if key != Key(LEASE_NAMESPACE, node):
        raise Refused("another lease", f"the lease of node {node} is {LEASE_NAMESPACE}/{node}, not {key}")


def check_labels(node: str, wanted: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Labels a node sets on itself; those it has already are no matter.

    Raises:
        Refused: One of them is not a node's to set, or to remove (None).
    """
    for name, value in wanted.items():
        if known.get(name) != value and not _is_own_label(name):
            raise Refused("node label", f"node {node} may not set its label {name[:317]!r}")


def _is_own_label(name: str) -> bool:
    if name in _ROLES or name in _OWN_LABELS:
        return True
    prefix = name.partition("/")[0] if "/" in name else ""
    if any(prefix == own or prefix.endswith(f".{own}") for own in _OWN_PREFIXES):
        return True
    reserved = any(prefix == domain or prefix.endswith(f".{domain}") for domain in _RESERVED)
    return not reserved and not name.startswith("$")  # `$patch` and its like command a strategic merge


def check_node_object(node: str, obj: Object, known: Object | None) -> None:
    """A whole Node, as a node registers or updates itself."""
    metadata = mapping(obj.get("metadata"))
    name = metadata.get("name")
    check_node(node, name if isinstance(name, str) and name else node)
    for field in ("ownerReferences", "finalizers"):  # with an owner of its choice a node has itself deleted
        if metadata.get(field) and metadata[field] != mapping((known or {}).get("metadata")).get(field):
            raise Refused("node field", f"node {node} may not set its metadata.{field}")
    if spec_of(obj).get("configSource"):
        raise Refused("node field", f"node {node} may not set its spec.configSource")
    known_labels = mapping(mapping((known or {}).get("metadata")).get("labels"))
    check_labels(node, mapping(metadata.get("labels")), known_labels)


def narrow_patch(subject: str, patch: Any, *, metadata: frozenset[str]) -> Object:
    """A status patch with nothing but `status` and the given members of `metadata`.

    Raises:
        Refused: It holds more; a status patch reaches labels and owners too.
    """
    patch = patch if isinstance(patch, dict) else {}
    if extra := sorted(set(patch) - {"metadata", "status", "apiVersion", "kind"}):
        raise Refused("patched field", f"a status patch of {subject} may not hold {extra[0][:253]!r}")
    inner = mapping(patch.get("metadata"))
    if extra := sorted(set(inner) - metadata):
        raise Refused("patched field", f"a status patch of {subject} may not hold metadata.{extra[0][:253]}")
    for name, member in inner.items():
        if isinstance(member, dict) and any(word.startswith("$") for word in member):
            raise Refused("patched field", f"a status patch of {subject} may not hold directives in its metadata")
        if not isinstance(member, dict | str):  # null takes away what others have set there
            raise Refused("patched field", f"a status patch of {subject} may not remove metadata.{name[:253]}")
    narrow: Object = {"metadata": inner} if inner else {}
    return narrow | ({"status": patch["status"]} if "status" in patch else {})


def check_pod(node: str, key: Key, pod: Object) -> None:
    """`pod` as the API has it."""
    if spec_of(pod).get("nodeName") != node:
        raise Refused("pod of another node", f"pod {key} is not bound to node {node}")


def check_mirror_pod(node: str, key: Key, pod: Object, *, node_uid: str) -> None:
    """A pod that a node shows in the API, run from a file of its own."""
    metadata, spec = mapping(pod.get("metadata")), spec_of(pod)
    if not mapping(metadata.get("annotations")).get(MIRROR_ANNOTATION):
        raise Refused("pod to create", f"node {node} may create mirror pods only; {key} is none")
    if spec.get("nodeName") != node:
        raise Refused("pod to create", f"mirror pod {key} is not bound to node {node}")
    if (
        spec.get("serviceAccountName")
        or spec.get("serviceAccount")  # the older name of the same
        or next(references({**pod, "metadata": {"name": key.name, "namespace": key.namespace}}), None)
    ):
        raise Refused("pod to create", f"mirror pod {key} may refer to no service account, secret, config map or claim")
    owners = metadata.get("ownerReferences") or []
    for owner in owners if isinstance(owners, list) else [owners]:
        owner = mapping(owner)
        its_own = owner.get("kind") == "Node" and owner.get("name") == node and owner.get("uid") == node_uid
        if not its_own or owner.get("blockOwnerDeletion"):
            raise Refused("pod to create", f"mirror pod {key} may be owned by node {node} alone")
    if metadata.get("finalizers"):
        raise Refused("pod to create", f"mirror pod {key} may have no finalizers")


def check_reference(node: str, path: ObjectPath, graph: Graph) -> None:
    if not graph.refers(node, Reference(path.type, path.namespace, path.name)):
        raise Refused("unreferenced object", f"no pod of node {node} refers to {path}")


def check_volume(node: str, volume: Object, graph: Graph) -> None:
    claim = mapping(spec_of(volume).get("claimRef"))
    reference = Reference("persistentvolumeclaim", str(claim.get("namespace")), str(claim.get("name")))
    if not graph.refers(node, reference):
        raise Refused("unreferenced object", f"no pod of node {node} claims persistentvolume {key_of(volume).name}")


def check_attachment(node: str, attachment: Object) -> None:
    if spec_of(attachment).get("nodeName") != node:
        raise Refused("unreferenced object", f"volumeattachment {key_of(attachment).name} is not node {node}'s")


def check_token(node: str, account: Key, request: Object, graph: Graph) -> None:
    """A node gets tokens for a pod of its own that runs under the account, bound to that pod."""
    bound = mapping(spec_of(request).get("boundObjectRef"))
    pod = graph.pod(node, Key(account.namespace, str(bound.get("name"))))
    if bound.get("kind") != "Pod" or pod is None or bound.get("uid") != pod.uid:
        raise Refused("token", f"a token of {account} for node {node} must be bound to a pod of the node")
    if pod.is_mirror:
        raise Refused("token", f"pod {pod.key} is node {node}'s own, and runs under no service account")
    if pod.service_account != account.name:
        raise Refused("token", f"pod {pod.key} does not run under service account {account}")


def check_event(node: str, key: Key, event: Object, graph: Graph, *, node_of_device: str) -> None:
    """An event about the node, one of its pods, or one of its devices."""
    about = mapping(event.get("involvedObject"))
    kind, name = about.get("kind"), about.get("name")
    namespace = about.get("namespace") or "default"
    own = (
        (kind == "Node" and name == node)
        or (kind == "Pod" and graph.pod(node, Key(str(namespace), str(name))) is not None)
        or (kind == "Device" and node_of_device == node)
    )
    if not own or namespace != key.namespace or key_of(event) != key:
        text = f"event {key} of node {node} is about {str(kind)[:63]} {str(namespace)[:63]}/{str(name)[:253]}"
        raise Refused("event", f"{text}, which is none of its own")


def mapping(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def uid_of(obj: Object | None) -> str:
    return identity(obj) if obj is not None else ""
