"""`/healthz` and `/readyz`: whether the mappers of this process do their work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from dmi.web.http import Request, Response, json_response
from dmi.web.routes import Route
from mappers.sdk.web.replies import rfc3339
from mappers.sdk.web.views import MapperView

__all__ = ["GRACE_S", "Health", "unhealthy_reason"]

GRACE_S: Final = 60.0
"""An edge core may be away for this long, as when it restarts, before `/healthz` calls it a failure."""


def unhealthy_reason(mapper: MapperView, now: float, grace_s: float) -> str:
    """Why a mapper counts as failing; empty: it does not. `now` in epoch seconds."""
    registration = mapper.registration
    if registration.registered or now - registration.since < grace_s:
        return ""
    since = f"{mapper.name} is not registered with an edge core since {rfc3339(registration.since)}"
    return f"{since}: {registration.problem}" if registration.problem else since


class Health:
    """The two endpoints. That they answer at all says that the event loop turns."""

    def __init__(self, mappers: Sequence[MapperView]) -> None:
        self._mappers = mappers

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", "/healthz", self.healthz, public=True),
            Route("GET", "/readyz", self.readyz, public=True),
        )

    async def healthz(self, _request: Request) -> Response:
        return self._verdict(GRACE_S)

    async def readyz(self, _request: Request) -> Response:
        return self._verdict(0.0)

    def _verdict(self, grace_s: float) -> Response:
        now = time.time()
        reasons = [reason for m in self._mappers if (reason := unhealthy_reason(m, now, grace_s))]
        if not self._mappers:
            reasons = ["no mapper runs yet"]
        body: dict[str, object] = {"status": "failing" if reasons else "ok"}
        if reasons:
            body["reason"] = "; ".join(reasons)
        body["mappers"] = [
            {
                "name": m.name,
                "protocol": m.protocol,
                "registered": m.registration.registered,
                "since": rfc3339(m.registration.since),
                "devices": len(m.fleet.runners()),
            }
            for m in self._mappers
        ]
        return json_response(body, 503 if reasons else 200)
