"""The routing table: which request goes to which endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote

from msgspec import Struct

from dmi.web.http import HttpError, Request, Response

__all__ = ["Endpoint", "Route", "find_route"]

Endpoint = Callable[[Request], Awaitable[Response]]


class Route(Struct, frozen=True):
    """One line of the table."""

    method: str
    pattern: str
    """Such as `/api/v1/device/{namespace}/{name}`: a segment is fixed, or a name for whatever stands there."""
    endpoint: Endpoint
    writes: bool = False
    """It changes a device."""
    public: bool = False
    """It asks for no token."""


def find_route(routes: Sequence[Route], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route, and what stood in the place of each `{name}`.

    The path is as it came, percent-encoded: `%2F` is a character of its segment, not a border. HEAD is answered where
    GET is and nothing is written.

    Raises:
        HttpError: 404 no such path, 405 another verb, 400 a segment is not UTF-8.
    """
    segments = path.split("/")
    allowed: set[str] = set()
    for route in routes:
        params = _match(route.pattern.split("/"), segments)
        if params is None:
            continue
        verbs = (route.method, "HEAD") if route.method == "GET" and not route.writes else (route.method,)
        if method in verbs:
            return route, params
        allowed.update(verbs)
    if allowed:
        verbs_text = ", ".join(sorted(allowed))
        raise HttpError(405, f"here it is {verbs_text}", (("Allow", verbs_text),))
    raise HttpError(404, "no such path")


def _match(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    params: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if not expected.startswith("{"):
            if expected != segment:
                return None
        elif not segment:
            return None
        else:
            params[expected[1:-1]] = segment
    try:
        return {name: unquote(segment, errors="strict") for name, segment in params.items()}
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not percent-encoded UTF-8") from None
