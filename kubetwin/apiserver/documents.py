"""Paths that hold no objects: discovery, OpenAPI, version, and reviews of the caller's rights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from kubetwin.apiserver import discovery, errors, openapi
from kubetwin.apiserver.items import JsonObject, encode
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.views import JSON, accepted

ADMIN = "kubetwin-admin"
ADMIN_GROUPS = ["system:masters", "system:authenticated"]
VERSION: JsonObject = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+kubetwin",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "python",
}
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"
# kubectl asks for OpenAPI 2 in protobuf when version 3 does not know a kind, and takes a kind unknown there too as one
# it need not check; the message it prints then is the right one ("no matches for kind"). So: a document with no kinds.
_SWAGGER_ACCEPT = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_SWAGGER_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"  # an @ may not stand there
_EMPTY_SWAGGER = b"\x0a\x032.0\x12\x16\x0a\x0aKubernetes\x12\x08kubetwin"  # swagger, info { title, version }
_NON_RESOURCE = ("/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version")


class Documents:
    """Makes the documents on demand and keeps them until the registry changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cache: dict[tuple[str, ...], tuple[bytes, str]] = {}
        self._generation = -1

    def find(self, request: web.Request, parts: list[str]) -> web.Response | None:
        """The document at a path; None when there is none."""
        registry = self._registry
        match parts:
            case [""]:
                return _json({"paths": [*_NON_RESOURCE, *(f"/{path}" for path in openapi.document_paths(registry))]})
            case ["version"]:
                return _json(VERSION)
            case ["api"] | ["apis"]:
                return self._discovery_root(request, core=parts == ["api"])
            case ["api", version]:
                return self._document(request, parts, lambda: discovery.resource_list(registry, "", version))
            case ["apis", group]:
                return self._document(request, parts, lambda: discovery.group(registry, group))
            case ["apis", group, version]:
                return self._document(request, parts, lambda: discovery.resource_list(registry, group, version))
            case ["openapi", "v2"]:
                if _wants_protobuf(request):
                    return web.Response(body=_EMPTY_SWAGGER, headers={"Content-Type": _SWAGGER_PROTOBUF})
                return self._document(request, parts, lambda: openapi.swagger(registry))
            case ["openapi", "v3"]:
                return self._document(request, parts, lambda: openapi.index(registry))
            case ["openapi", "v3", *rest]:
                found = openapi.document_paths(registry).get("/".join(rest))
                return self._document(request, parts, lambda: openapi.document(registry, *found)) if found else None
        return None

    def _discovery_root(self, request: web.Request, *, core: bool) -> web.Response | None:
        registry = self._registry
        for media, params in accepted(request.headers.get("Accept", "")):
            if media in (JSON, "*/*", "application/*") and "as" not in params:
                break
            version = params.get("v", "")
            wanted = (params.get("as"), params.get("g")) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io")
            if media == JSON and wanted and version in discovery.AGGREGATED_VERSIONS:
                name = ["aggregated", str(core), version]
                make = partial(discovery.aggregated, registry, core=core, version=version)
                document = self._document(request, name, make)
                if document is not None:
                    document.headers["Content-Type"] = _AGGREGATED.format(version)
                return document
        if core:
            return self._document(request, ["api"], discovery.core_versions)
        return self._document(request, ["apis"], lambda: discovery.group_list(registry))

    def _document(
        self, request: web.Request, name: list[str], make: Callable[[], JsonObject | None]
    ) -> web.Response | None:
        if self._generation != self._registry.generation:
            self._cache.clear()
            self._generation = self._registry.generation
        entry = self._cache.get(tuple(name))
        if entry is None:
            tree = make()
            if tree is None:
                return None
            body = encode(tree)
            entry = self._cache[tuple(name)] = (body, f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"')
        body, etag = entry
        headers = {"ETag": etag, "Vary": "Accept", "Cache-Control": "no-cache, private"}
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=JSON, headers=headers)


def find_review(parts: list[str]) -> discovery.Review | None:
    """The review kind at a path."""
    if len(parts) != 4 or parts[0] != "apis":
        return None
    return next((r for r in discovery.REVIEWS if [r.group, r.version, r.plural] == parts[1:]), None)


def review(kind: discovery.Review, body: Any) -> web.Response:
    """The answer to a review: there is one user, and it may do everything."""
    if not isinstance(body, dict):
        raise errors.bad_request("the body of the request must be an object")
    status: JsonObject
    match kind.kind:
        case "SelfSubjectReview":
            status = {"userInfo": {"username": ADMIN, "groups": ADMIN_GROUPS}}
        case "SelfSubjectAccessReview":
            status = {"allowed": True, "reason": "the one token of this server may do everything"}
        case _:
            everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
            paths = {"verbs": ["*"], "nonResourceURLs": ["*"]}
            status = {"resourceRules": [everything], "nonResourceRules": [paths], "incomplete": False}
    answer = {
        "kind": kind.kind,
        "apiVersion": f"{kind.group}/{kind.version}",
        "metadata": {"creationTimestamp": None},
        "spec": body.get("spec") or {},
        "status": status,
    }
    return _json(answer, status=201)


def _wants_protobuf(request: web.Request) -> bool:
    first, _ = accepted(request.headers.get("Accept", ""))[0]
    return first == _SWAGGER_ACCEPT


def _json(tree: JsonObject, status: int = 200) -> web.Response:
    return web.Response(body=encode(tree), content_type=JSON, status=status)
