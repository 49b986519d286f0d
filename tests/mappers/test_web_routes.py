"""The routing table on its own: what was percent-encoded comes back whole, and nothing else matches."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.web.http import HttpError, Request, Response
from dmi.web.routes import Route, find_route


async def endpoint(request: Request) -> Response:
    raise NotImplementedError


ROUTES = (
    Route("GET", "/api/{a}", endpoint),
    Route("GET", "/api/{a}/set/{b}", endpoint, writes=True),
    Route("PUT", "/api/{a}", endpoint, writes=True),
)

segment = st.text(st.characters(codec="utf-8"), min_size=1)


@given(segment, segment)
def test_encoded_segments_come_back(a: str, b: str) -> None:
    route, params = find_route(ROUTES, "GET", f"/api/{quote(a, safe='')}/set/{quote(b, safe='')}")
    assert route is ROUTES[1]
    assert params == {"a": a, "b": b}


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)), st.sampled_from(["GET", "PUT", "HEAD", "POST"]))
def test_any_path_is_found_or_refused(path: str, method: str) -> None:
    refused = 0
    try:
        route, params = find_route(ROUTES, method, path)
    except HttpError as error:
        refused = error.status
    if refused:
        assert refused in (400, 404, 405)
    else:
        assert route.method == method or method == "HEAD"
        assert path.startswith("/api/")
        assert all(params.values())


@pytest.mark.parametrize("path", ("/api/%ff", "/api/%C3", "/api/x/set/%80"))
def test_bytes_that_are_no_text_are_refused(path: str) -> None:
    with pytest.raises(HttpError) as refused:
        find_route(ROUTES, "GET", path)
    assert refused.value.status == 400
