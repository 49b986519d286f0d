"""The HTTP surface: who may ask, what is asked, and every failure answered with a `Status`."""

from __future__ import annotations

import asyncio
import hmac
import logging

from aiohttp import web

from kubetwin.apiserver import errors
from kubetwin.apiserver.admission import Target
from kubetwin.apiserver.documents import Documents, find_review, review
from kubetwin.apiserver.items import encode
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.metrics import Metrics
from kubetwin.apiserver.objects import Objects, Outcome, PatchKind
from kubetwin.apiserver.reads import Reads
from kubetwin.apiserver.requests import (
    MAX_BODY_BYTES,
    delete_options,
    find_target,
    list_options,
    media_type,
    read_body,
    read_json,
    write_options,
)
from kubetwin.apiserver.store import Store
from kubetwin.apiserver.tokens import Tokens
from kubetwin.apiserver.views import JSON, IncludeObject, ListMeta, View, choose_shape

logger = logging.getLogger(__name__)

_HEALTH = ("healthz", "livez", "readyz")
_PATCHES: dict[str, PatchKind] = {
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "json",
    "application/strategic-merge-patch+json": "strategic",
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class HttpApi:
    """Routes requests. One catch-all handler, because the kinds come and go."""

    def __init__(self, store: Store, registry: Registry, objects: Objects, *, token: str) -> None:
        self._store = store
        self._registry = registry
        self._objects = objects
        self._token = f"Bearer {token}".encode()
        self._tokens = Tokens()
        self.metrics = Metrics()
        self.reads = Reads(store, self.metrics)
        self._documents = Documents(registry)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        label = ["", "", ""]  # verb, group, resource; filled in as they become known
        try:
            response = await self._dispatch(request, label)
        except errors.ApiError as refusal:
            response = _refused(refusal)
        except web.HTTPRequestEntityTooLarge:
            response = _refused(errors.too_large(MAX_BODY_BYTES))
        except web.HTTPException as exc:
            response = _refused(errors.ApiError(exc.status, "BadRequest", exc.reason))
        except RecursionError:
            response = _refused(errors.bad_request("the object provided is nested too deeply"))
        except Exception as exc:
            logger.exception("%s %s failed", request.method, request.path)
            response = _refused(errors.internal(f"{type(exc).__name__}: {exc}"))
        if label[0]:
            self.metrics.requests[label[0], label[1], label[2], response.status] += 1
        return response

    async def _dispatch(self, request: web.Request, label: list[str]) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if parts[0] in _HEALTH and request.method in ("GET", "HEAD"):
            return web.Response(text="ok")
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._token):
            raise errors.unauthorized()
        target = find_target(self._registry, parts)
        if target is not None:
            return await self._on_target(request, target, label)
        match parts:
            case ["api", "v1", "namespaces", namespace, "serviceaccounts", name, "token"]:
                return await self._token_of(request, namespace, name)
        kind = find_review(parts)
        if kind is not None:
            if request.method != "POST":
                raise errors.method_not_allowed(kind.group, kind.plural)
            return review(kind, read_body(request.content_type, await request.read()))
        if request.method not in ("GET", "HEAD"):
            raise errors.no_such_path()
        if parts == ["metrics"]:
            return web.Response(
                text=self.metrics.text(self._store), headers={"Content-Type": "text/plain; version=0.0.4"}
            )
        document = self._documents.find(request, parts)
        if document is None:
            raise errors.no_such_path()
        return document

    async def _token_of(self, request: web.Request, namespace: str, name: str) -> web.Response:
        if request.method != "POST":
            raise errors.method_not_allowed("", "serviceaccounts")
        account = self._store.newest("serviceaccounts", (namespace, name))
        if account is None:
            raise errors.not_found("", "serviceaccounts", name)
        body = read_body(request.headers.get("Content-Type", ""), await request.read())
        return web.Response(body=encode(self._tokens.request(account, body)), content_type=JSON, status=201)

    async def _on_target(self, request: web.Request, target: Target, label: list[str]) -> web.StreamResponse:
        method = request.method
        label[:] = [_VERBS.get(method, "get"), target.kind.group, target.kind.plural]
        if method in ("GET", "HEAD"):
            return await self._read(request, target, label)
        view = _view(request, target)
        if method == "DELETE":
            return await self._delete(request, view, label)
        if (method == "POST") is bool(target.name) or method not in _VERBS:
            raise errors.method_not_allowed(target.kind.group, target.kind.plural)
        if method == "POST" and target.kind.namespaced and not target.namespace:
            raise errors.method_not_allowed(target.kind.group, target.kind.plural)
        options = write_options(request.query)
        content_type = request.headers.get("Content-Type", "")
        body = await request.read()
        if method == "POST":
            outcome = await self._objects.create(target, read_body(content_type, body), options)
        elif method == "PUT":
            outcome = await self._objects.replace(target, read_body(content_type, body), options)
        else:
            patch_kind = _patch_kind(content_type, target)
            outcome = await self._objects.patch(target, patch_kind, read_json(body), options)
        return _written(view, outcome)

    async def _read(self, request: web.Request, target: Target, label: list[str]) -> web.StreamResponse:
        view = _view(request, target)
        options = list_options(request.query)
        if options.watch:
            label[0] = "watch"
            return await self.reads.watch(request, view, options)
        if target.name:
            return self.reads.get(view)
        label[0] = "list"
        return self.reads.collection(view, options)

    async def _delete(self, request: web.Request, view: View, label: list[str]) -> web.StreamResponse:
        target = view.target
        if target.subresource:
            raise errors.method_not_allowed(target.kind.group, target.kind.plural)
        options = delete_options(request.query, request.headers.get("Content-Type", ""), await request.read())
        if target.name:
            outcome = await self._objects.delete(target, options)
            if outcome.removed is None:
                return _written(view, outcome)
            kind = target.kind
            status = errors.success(target.name, kind.group, kind.plural, outcome.removed.uid)
            return web.Response(body=encode(status), content_type=JSON)
        label[0] = "deletecollection"
        if target.kind.namespaced and not target.namespace:
            raise errors.method_not_allowed(target.kind.group, target.kind.plural)
        items = self.reads.matching(target, list_options(request.query))
        targets = [Target(target.kind, target.version, item.namespace, item.name) for item in items]
        deletions = (self._objects.delete(one, options) for one in targets)
        for result in await asyncio.gather(*deletions, return_exceptions=True):
            if isinstance(result, BaseException) and not (isinstance(result, errors.ApiError) and result.code == 404):
                raise result
        return web.Response(body=view.many(items, ListMeta(self._store.version)), content_type=JSON)


def _view(request: web.Request, target: Target) -> View:
    shape, version = choose_shape(request.headers.get("Accept", ""))
    include: IncludeObject
    match request.query.get("includeObject", ""):
        case "" | "Metadata":
            include = "Metadata"
        case "None":
            include = "None"
        case "Object":
            include = "Object"
        case other:
            raise errors.bad_request(f'unrecognized includeObject value: "{other}"')
    return View(target, shape, version, include)


def _patch_kind(content_type: str, target: Target) -> PatchKind:
    media = media_type(content_type)
    found = _PATCHES.get(media)
    if found is None or (found == "strategic" and not target.kind.builtin):
        allowed = [name for name, kind in _PATCHES.items() if kind != "strategic" or target.kind.builtin]
        raise errors.unsupported_media_type(media, allowed)
    return found


def _written(view: View, outcome: Outcome) -> web.Response:
    response = web.Response(body=view.one(outcome.data), content_type=JSON, status=201 if outcome.created else 200)
    for text in outcome.warnings[:32]:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def _refused(refusal: errors.ApiError) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if refusal.code == 401 else {}
    retry = (refusal.details or {}).get("retryAfterSeconds")
    if retry is not None:
        headers["Retry-After"] = str(retry)
    return web.Response(body=encode(refusal.status()), content_type=JSON, status=refusal.code, headers=headers)
