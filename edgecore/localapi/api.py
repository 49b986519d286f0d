"""The endpoints. Errors are `{"error": …}` with a status that says whose they are."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Final

from cloudedge.message import now_ms
from dmi import DeviceId, device_id
from dmi.web.exposition import CONTENT_TYPE
from dmi.web.http import HttpError, Request, Response, json_response
from dmi.web.metrics_text import exposition
from dmi.web.process import start_time_s
from dmi.web.routes import Route
from edgecore.localapi.params import read_limit, read_query, read_since
from edgecore.localapi.sources import Sources
from edgecore.localapi.views import HISTORY_OFF, brief_view, device_view, history_view
from edgecore.store import StoreError, TwinRow, get_twins

__all__ = ["LocalApi"]

PAGE: Final = 100
MAX_PAGE: Final = 500
MAX_POINTS: Final = 10_000
MAX_HISTORY_BYTES: Final = 8 * 1024 * 1024
_MAX_NAME: Final = 253
"""Characters of a Kubernetes name."""


class LocalApi:
    """`responses`: answers by status, counted by the server."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.responses: dict[int, int] = {}

    def routes(self) -> tuple[Route, ...]:
        device = "/v1/devices/{namespace}/{name}"
        return (
            Route("GET", "/healthz", self.healthz),
            Route("GET", "/readyz", self.readyz),
            Route("GET", "/metrics", self.metrics),
            Route("GET", "/v1/devices", self.list_devices),
            Route("GET", device, self.get_device),
            Route("GET", f"{device}/path", self.get_path),
            Route("GET", f"{device}/history", self.get_history),
        )

    async def healthz(self, _request: Request) -> Response:
        """That it answers at all says that the event loop turns."""
        node = self._sources.facts.node_facts().node
        return json_response({"status": "ok", "node": node, "uptime_s": round(time.time() - start_time_s(), 1)})

    async def readyz(self, _request: Request) -> Response:
        """Whether mappers are served. A cloud that is away, or a store that writes nothing, is told and no reason."""
        facts, history = self._sources.facts.node_facts(), self._sources.history
        ready = self._sources.served.is_set()
        troubles = (facts.store_trouble, history.trouble if history else "", facts.mqtt_trouble)
        body = {
            "status": ("degraded" if any(troubles) else "ok") if ready else "starting",
            "node": facts.node,
            "devices": len(self._sources.facts.devices()) if ready else 0,
            "mappers": facts.other_mappers,
            "store": {"trouble": facts.store_trouble, "since": facts.store_trouble_since_ms},
            "cloud": {
                "url": facts.cloud_url,
                "connected": facts.cloud_connected,
                "since": facts.cloud_since_ms,
                "trouble": facts.cloud_trouble,
            },
            "history": {"enabled": history is not None, "trouble": troubles[1]},
            "mqtt": {"trouble": facts.mqtt_trouble},
        }
        return json_response(body, 200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        return Response(
            200, exposition(self._sources.metrics, self.responses, api="kubetwin_edgecore_api").encode(), CONTENT_TYPE
        )

    async def list_devices(self, request: Request) -> Response:
        self._check_served()
        values = read_query(request.query, ("limit", "after", "namespace"))
        limit = read_limit(values, default=PAGE, most=MAX_PAGE)
        after, within = values.get("after", ""), values.get("namespace", "")
        found = sorted(
            device
            for device in self._sources.facts.devices()
            if device > after and (not within or device.startswith(f"{within}/"))
        )
        with _store_errors():
            page = await self._sources.facts.brief(found[:limit])
        next_ = found[limit - 1] if len(found) > limit else ""
        return json_response({"devices": [brief_view(facts) for facts in page], "next": next_})

    async def get_device(self, request: Request) -> Response:
        read_query(request.query, ())
        device = self._known(request)

        def job(db: sqlite3.Connection) -> dict[str, TwinRow]:
            return get_twins(db, device)

        facts = await self._sources.facts.path(device)
        with _store_errors():
            rows = await self._sources.database.run(job)
        return json_response(device_view(facts, rows))

    async def get_path(self, request: Request) -> Response:
        """Also of a device that is not here: that is then what is to be seen."""
        self._check_served()
        read_query(request.query, ())
        return json_response(await self._sources.facts.path(_device_of(request)))

    async def get_history(self, request: Request) -> Response:
        values = read_query(request.query, ("property", "since", "limit"))
        device, history = self._known(request), self._sources.history
        if history is None:
            raise HttpError(404, HISTORY_OFF)
        limit = read_limit(values, default=PAGE, most=MAX_POINTS)
        since_ms = read_since(values, now_ms=now_ms())
        try:
            points, truncated = await history.newest_first(
                device, values.get("property", ""), since_ms=since_ms, limit=limit, max_bytes=MAX_HISTORY_BYTES
            )
        except (OSError, ValueError, sqlite3.Error) as error:
            raise HttpError(503, f"the history cannot be read: {error}") from error
        return json_response(history_view(points, truncated))

    def _check_served(self) -> None:
        if not self._sources.served.is_set():
            raise HttpError(503, "edge core is starting")

    def _known(self, request: Request) -> DeviceId:
        self._check_served()
        device = _device_of(request)
        if not self._sources.facts.is_here(device):
            raise HttpError(404, f"device {device} is not on this node; /v1/devices has those that are")
        return device


def _device_of(request: Request) -> DeviceId:
    namespace, name = request.params["namespace"], request.params["name"]
    if max(len(namespace), len(name)) > _MAX_NAME or "/" in namespace + name:
        raise HttpError(400, "that is no namespace and name of a device")
    return device_id(namespace, name)


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise HttpError(503, str(error)) from error
