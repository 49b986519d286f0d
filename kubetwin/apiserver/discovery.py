"""Discovery documents, made from the registry: the classic ones, one per group version, and the aggregated one.

Reference: Kubernetes API concepts, "API Discovery"; apidiscovery.k8s.io/v2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.kinds import Kind, Registry, Version, version_priority

OBJECT_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")
AGGREGATED_VERSIONS = ("v2", "v2beta1")


class Review(NamedTuple):
    """A kind that only answers a POST and stores nothing."""

    group: str
    version: str
    plural: str
    kind: str


REVIEWS = (
    Review("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview"),
    Review("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    Review("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
)


def group_versions(registry: Registry) -> dict[str, list[str]]:
    """All served versions by group, preferred first; the core group is ""."""
    found = registry.groups()
    for review in REVIEWS:
        versions = found.setdefault(review.group, [])
        if review.version not in versions:
            versions.append(review.version)
            versions.sort(key=version_priority)
    return dict(sorted(found.items()))


def core_versions() -> JsonObject:
    """/api"""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(registry: Registry) -> JsonObject:
    """/apis"""
    groups = [_group(name, versions) for name, versions in group_versions(registry).items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> JsonObject | None:
    """/apis/<group>"""
    versions = group_versions(registry).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if name and versions else None


def _group(name: str, versions: list[str]) -> JsonObject:
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def resource_list(registry: Registry, group_name: str, version: str) -> JsonObject | None:
    """/api/v1 and /apis/<group>/<version>"""
    if version not in group_versions(registry).get(group_name, ()):
        return None
    resources: list[JsonObject] = []
    for kind, served in _served(registry, group_name, version):
        entry: JsonObject = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(OBJECT_VERBS),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        resources.append(entry)
        if served.has_status:
            status = {"singularName": "", "namespaced": kind.namespaced, "kind": kind.kind, "verbs": list(STATUS_VERBS)}
            resources.append({"name": f"{kind.plural}/status", **status})
    resources.extend(
        {
            "name": review.plural,
            "singularName": review.kind.lower(),
            "namespaced": False,
            "kind": review.kind,
            "verbs": ["create"],
        }
        for review in _reviews(group_name, version)
    )
    group_version = f"{group_name}/{version}" if group_name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def aggregated(registry: Registry, *, core: bool, version: str) -> JsonObject:
    """/api or /apis in one document (`apidiscovery.k8s.io`)."""
    items: list[JsonObject] = []
    for name, versions in group_versions(registry).items():
        if (name == "") is not core:
            continue
        entries = [
            {"version": one, "resources": _aggregated_resources(registry, name, one), "freshness": "Current"}
            for one in versions
        ]
        items.append(
            {
                "metadata": {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None},
                "versions": entries,
            }
        )
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _aggregated_resources(registry: Registry, group_name: str, version: str) -> list[JsonObject]:
    resources: list[JsonObject] = []
    for kind, served in _served(registry, group_name, version):
        response_kind = {"group": kind.group, "version": version, "kind": kind.kind}
        entry: dict[str, Any] = {
            "resource": kind.plural,
            "responseKind": response_kind,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": kind.singular,
            "verbs": list(OBJECT_VERBS),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        if served.has_status:
            entry["subresources"] = [
                {"subresource": "status", "responseKind": response_kind, "verbs": list(STATUS_VERBS)}
            ]
        resources.append(entry)
    resources.extend(
        {
            "resource": review.plural,
            "responseKind": {"group": review.group, "version": version, "kind": review.kind},
            "scope": "Cluster",
            "singularResource": review.kind.lower(),
            "verbs": ["create"],
        }
        for review in _reviews(group_name, version)
    )
    return resources


def _served(registry: Registry, group_name: str, version: str) -> list[tuple[Kind, Version]]:
    found = [(kind, kind.version(version)) for kind in registry if kind.group == group_name]
    return sorted(((kind, served) for kind, served in found if served is not None), key=lambda pair: pair[0].plural)


def _reviews(group_name: str, version: str) -> list[Review]:
    return [review for review in REVIEWS if (review.group, review.version) == (group_name, version)]
