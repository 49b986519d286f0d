"""The built-in kinds: what kubectl and an edge need around the custom resources. Stored and watched; nothing is run.

Their schemas name the fields people use; what else a client sends is kept (`x-kubernetes-preserve-unknown-fields`), so
no field of a Pod or Node is ever lost for being unknown here.
"""

from __future__ import annotations

import base64
import binascii

from kubetwin.apiserver import builtin_columns as show
from kubetwin.apiserver.builtin_schema import CONDITIONS, builtin_kind, integer, listing, mapping, struct, text
from kubetwin.apiserver.builtin_storage import storage_kinds
from kubetwin.apiserver.crd import crd_kind
from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.kinds import Kind, Problem, Registry

START_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease", "kubeedge")
PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})


def _prepare_namespace(new: JsonObject, old: JsonObject | None) -> None:
    if old is None:
        new["spec"] = {**(new.get("spec") or {}), "finalizers": ["kubernetes"]}
        new["status"] = {"phase": "Active"}
        labels = new["metadata"].get("labels") or {}
        new["metadata"]["labels"] = {**labels, "kubernetes.io/metadata.name": new["metadata"]["name"]}
    else:
        new["spec"] = {**(new.get("spec") or {}), "finalizers": (old.get("spec") or {}).get("finalizers", [])}


def _prepare_secret(new: JsonObject, old: JsonObject | None) -> None:
    plain = new.pop("stringData", None)
    if isinstance(plain, dict):
        data = dict(new.get("data") or {})
        data.update({key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()})
        new["data"] = data
    new.setdefault("type", "Opaque" if old is None else old.get("type", "Opaque"))


def _check_secret(new: JsonObject, old: JsonObject | None) -> list[Problem]:
    problems: list[Problem] = []
    for key, value in (new.get("data") or {}).items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError, TypeError):
            problems.append((f"data[{key}]", "FieldValueInvalid", "Invalid value: must be base64"))
    if old is not None and new["type"] != old.get("type"):
        problems.append(("type", "FieldValueInvalid", f'Invalid value: "{new["type"]}": field is immutable'))
    return problems + _check_immutable(new, old)


def _check_immutable(new: JsonObject, old: JsonObject | None) -> list[Problem]:
    if old is None or old.get("immutable") is not True:
        return []
    if new.get("immutable") is not True or any(new.get(key) != old.get(key) for key in ("data", "binaryData")):
        return [("data", "FieldValueForbidden", "Forbidden: field is immutable when `immutable` is set")]
    return []


def _prepare_pod(new: JsonObject, old: JsonObject | None) -> None:
    if old is None:
        new["status"] = {"phase": "Pending"}


def _check_event(new: JsonObject, _old: JsonObject | None) -> list[Problem]:
    about = new.get("involvedObject") or {}
    namespace = about.get("namespace") or "default"
    if namespace != new["metadata"]["namespace"]:
        return [("involvedObject.namespace", "FieldValueInvalid", "Invalid value: does not match event.namespace")]
    return []


def builtin_kinds(registry: Registry) -> tuple[Kind, ...]:
    """All built-in kinds, CustomResourceDefinition among them."""
    secret_data = mapping("The secret data, base64.")
    return (
        builtin_kind(
            "namespaces",
            "Namespace",
            struct(
                "Namespace provides a scope for Names.",
                spec=struct("Behavior."),
                status=struct("Status.", phase=text()),
            ),
            *show.NAMESPACE,
            namespaced=False,
            short_names=("ns",),
            has_status=True,
            selectable=("status.phase",),
            prepare=_prepare_namespace,
        ),
        builtin_kind(
            "nodes",
            "Node",
            struct(
                "Node is a machine of the edge.",
                spec=struct("Behavior.", unschedulable={"type": "boolean"}, podCIDR=text()),
                status=struct("Most recently observed status.", conditions=CONDITIONS),
            ),
            *show.NODE,
            namespaced=False,
            short_names=("no",),
            has_status=True,
            selectable=("spec.unschedulable",),
        ),
        builtin_kind(
            "secrets",
            "Secret",
            struct(
                "Secret holds secret data of a certain type.",
                data=secret_data,
                stringData=mapping("Written as text, stored in data."),
                type=text("Used to facilitate programmatic handling of secret data."),
                immutable={"type": "boolean"},
            ),
            *show.SECRET,
            selectable=("type",),
            prepare=_prepare_secret,
            check=_check_secret,
        ),
        builtin_kind(
            "configmaps",
            "ConfigMap",
            struct(
                "ConfigMap holds configuration data.",
                data=mapping("The configuration data."),
                binaryData=mapping("The binary data, base64."),
                immutable={"type": "boolean"},
            ),
            *show.CONFIG_MAP,
            short_names=("cm",),
            check=_check_immutable,
        ),
        builtin_kind(
            "serviceaccounts",
            "ServiceAccount",
            struct("ServiceAccount binds together a name and a principal.", secrets=listing(struct("", name=text()))),
            *show.SERVICE_ACCOUNT,
            short_names=("sa",),
        ),
        builtin_kind(
            "events",
            "Event",
            struct(
                "Event is a report of an event somewhere in the cluster.",
                involvedObject=struct("The object this event is about.", kind=text(), name=text(), namespace=text()),
                reason=text("Why the transition happened, machine readable."),
                message=text("A human-readable description."),
                type=text("Normal or Warning."),
                count={"type": "integer", "format": "int32"},
                source=struct("The component reporting this event.", component=text(), host=text()),
            ),
            *show.EVENT,
            short_names=("ev",),
            selectable=(
                *(f"involvedObject.{part}" for part in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")),
                "involvedObject.resourceVersion",
                "reason",
                "type",
                "reportingComponent",
            ),
            check=_check_event,
        ),
        builtin_kind(
            "pods",
            "Pod",
            struct(
                "Pod is a collection of containers. Stored only: this server runs no workload.",
                spec=struct(
                    "Desired behavior.", nodeName=text(), containers=listing(struct("", name=text(), image=text()))
                ),
                status=struct("Most recently observed status.", phase=text(), conditions=CONDITIONS),
            ),
            *show.POD,
            short_names=("po",),
            categories=("all",),
            has_status=True,
            selectable=("spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP", "spec.schedulerName"),
            prepare=_prepare_pod,
        ),
        builtin_kind(
            "leases",
            "Lease",
            struct(
                "Lease defines a lease concept.",
                spec=struct(
                    "Specification of the lease.",
                    holderIdentity=text("The holder of the current lease."),
                    leaseDurationSeconds=integer("How long candidates wait before taking the lease over."),
                    leaseTransitions=integer("The number of transitions between holders."),
                    acquireTime=text("When the current lease was acquired."),
                    renewTime=text("When the holder last updated the lease."),
                ),
            ),
            *show.LEASE,
            group="coordination.k8s.io",
        ),
        *storage_kinds(),
        crd_kind(registry),
    )
