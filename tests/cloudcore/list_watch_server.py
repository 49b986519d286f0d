"""A small HTTP server speaking list and watch for one kind; history can be cut, and watches broken."""

import asyncio
import json
from typing import Any

from aiohttp import web

from cloudcore.kube import Kind

KIND = Kind(group="test.example", version="v1", plural="things", kind="Thing")


class ListWatchServer:
    """`put` and `delete` objects; requests are remembered. Use as `async with`."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.oldest = 0
        """Watches from before this version are Gone."""
        self.lists: list[dict[str, str]] = []
        self.watches: list[dict[str, str]] = []
        self.gone_as_event = False
        self.missing = False
        self.refused = 0
        self.silent = False
        self.busy = 0
        """So many watches are answered with 429."""
        self.odd = 0
        """So many lists are answered with 200 and no list."""
        self.port = 0
        self._changed = asyncio.Event()
        self._streams: set[web.StreamResponse] = set()
        self._uids = 0
        self._runner: web.AppRunner | None = None

    def put(self, name: str, value: int) -> dict[str, Any]:
        known = self.objects.get(name)
        if known is None:
            self._uids += 1
        obj = {
            "metadata": {
                "namespace": "default",
                "name": name,
                "uid": known["metadata"]["uid"] if known else str(self._uids),
                "resourceVersion": str(self._next()),
                "managedFields": [{}],
            },
            "spec": {"value": value},
        }
        self.objects[name] = obj
        self._note("MODIFIED" if known else "ADDED", obj)
        return obj

    def delete(self, name: str) -> None:
        obj = self.objects.pop(name)
        version = str(self._next())
        self._note("DELETED", {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}})

    def bookmark(self) -> None:
        self._next()
        self._note("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def compact(self) -> None:
        """Forget the history so far."""
        self.oldest = self.version

    def break_watches(self) -> None:
        for stream in list(self._streams):
            connection = stream._req.transport if stream._req is not None else None
            if connection is not None:
                connection.abort()

    async def __aenter__(self) -> "ListWatchServer":
        app = web.Application()
        app.router.add_get(KIND.path(), self._get)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        self.break_watches()
        await self._runner.cleanup()

    def _next(self) -> int:
        self.version += 1
        return self.version

    def _note(self, type_: str, obj: dict[str, Any]) -> None:
        self.history.append((self.version, type_, obj))
        self._changed.set()
        self._changed = asyncio.Event()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if self.missing:
            self.refused += 1
            return _failure(404, "NotFound")
        return await (self._watch(request) if "watch" in request.query else self._list(request))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.lists.append(dict(request.query))
        if self.odd:
            self.odd -= 1
            return web.json_response({"status": "ok"})
        names = sorted(self.objects)
        start, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(names):
            metadata["continue"] = str(start + limit)
        return web.json_response(
            {"metadata": metadata, "items": [self.objects[n] for n in names[start : start + limit]]}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches.append(dict(request.query))
        version = int(request.query["resourceVersion"])
        if self.busy:
            self.busy -= 1
            return _failure(429, "TooManyRequests")
        if version < self.oldest and not self.gone_as_event:
            return _failure(410, "Expired")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._streams.add(response)
        try:
            if version < self.oldest:
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                return response
            while True:
                changed = self._changed
                for at, type_, obj in [h for h in self.history if h[0] > version]:
                    line = json.dumps({"type": type_, "object": obj}).encode() + b"\n"
                    if not self.silent:
                        half = len(line) // 2  # events come in any pieces
                        await response.write(line[:half])
                        await response.write(line[half:])
                    version = at
                await changed.wait()
        except ConnectionError:
            return response
        finally:
            self._streams.discard(response)


def _failure(status: int, reason: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": reason}
    return web.json_response(body, status=status)
