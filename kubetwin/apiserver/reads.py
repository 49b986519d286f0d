"""get, list and watch over HTTP."""

from __future__ import annotations

import random
from collections.abc import Iterator

from aiohttp import web

from kubetwin.apiserver import errors
from kubetwin.apiserver.admission import Target
from kubetwin.apiserver.items import Item, encode, watch_frame
from kubetwin.apiserver.metrics import Metrics
from kubetwin.apiserver.requests import ListOptions, PageToken, page_text, page_token, version_number
from kubetwin.apiserver.selectors import Match, both, parse_fields, parse_labels
from kubetwin.apiserver.store import Store
from kubetwin.apiserver.views import JSON, ListMeta, View
from kubetwin.apiserver.watches import Watcher

_WATCH_MIN_S = 1800.0  # a watch without a timeout of its own ends between this and twice this, as upstream


class Reads:
    """The reading verbs on one store; keeps the open watches."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._watchers: dict[Watcher, str] = {}

    def close_watches(self, resource: str | None = None) -> None:
        """End the watches of a resource whose kind changed, or all."""
        for watcher, watched in tuple(self._watchers.items()):
            if resource is None or watched == resource:
                watcher.close()

    def get(self, view: View) -> web.Response:
        """One object."""
        target = view.target
        item = self._store.get(target.kind.resource, target.key)
        if item is None:
            raise target.not_found()
        return web.Response(body=view.one(item.data), content_type=JSON)

    def select(self, target: Target, options: ListOptions) -> Match | None:
        """The matcher of a request's selectors; None when it selects everything."""
        match = both(
            parse_labels(options.label_selector), parse_fields(options.field_selector, target.version.selectable)
        )
        if not target.name:
            return match
        by_name = parse_fields(f"metadata.name={target.name}", frozenset())
        return by_name if match is None else both(by_name, match)

    def collection(self, view: View, options: ListOptions) -> web.Response:
        """A collection, or a page of it."""
        items, meta = self._page(view.target, options)
        return web.Response(body=view.many(items, meta), content_type=JSON)

    def matching(self, target: Target, options: ListOptions) -> list[Item]:
        """Everything a request selects, now."""
        match = self.select(target, options)
        items = self._store.state(target.kind.resource).sorted_items(_namespace(target))
        return [item for item in items if match is None or match(item)]

    def _page(self, target: Target, options: ListOptions) -> tuple[list[Item], ListMeta]:
        version, after = self._store.version, None
        asked = version_number(options.version)
        if options.next_page:
            token = page_token(options.next_page)
            version, after = token.version, token.key
        elif asked > version:
            raise errors.too_large_version(asked, version)
        elif options.version_match == "Exact" or (options.limit and asked and not options.version_match):
            version = asked
        items = self._store.list_at(target.kind.resource, _namespace(target), version)
        match = self.select(target, options)
        if match is not None:
            items = [item for item in items if match(item)]
        if after is not None:
            items = [item for item in items if item.key > after]
        if not options.limit or len(items) <= options.limit:
            return items, ListMeta(version)
        page = items[: options.limit]
        remaining = len(items) - len(page) if match is None else None
        return page, ListMeta(version, page_text(PageToken(version, *page[-1].key)), remaining)

    async def watch(self, request: web.Request, view: View, options: ListOptions) -> web.StreamResponse:
        """A stream of events until the client leaves, the timeout, or the server's end."""
        target = view.target
        resource = target.kind.resource

        def drop() -> None:
            self._metrics.dropped_watches += 1
            if request.transport is not None:
                request.transport.abort()

        match = self.select(target, options)
        asked = version_number(options.version)
        watcher = Watcher(self._store, view, _namespace(target), match, drop)
        try:
            first = self._first(watcher, view, options, asked)
        except errors.ApiError as refusal:
            if refusal.code != 410:
                raise
            line = watch_frame("ERROR", encode(refusal.status()))  # as upstream: inside a stream that did start
            return web.Response(body=line, content_type=JSON)
        spread = random.uniform(1, 2)  # noqa: S311 (so that clients do not come back all at once)
        timeout_s = options.timeout_s or _WATCH_MIN_S * spread
        response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-cache, private"})
        watcher.attach()  # no await since `first` was made, so no event is missed or told twice
        self._watchers[watcher] = resource
        self._metrics.watches[resource] += 1
        try:
            await response.prepare(request)
            await watcher.stream(first, response.write, timeout_s=timeout_s, bookmarks=options.bookmarks)
            if not watcher.dropped:
                await response.write_eof()
        except ConnectionError:
            pass  # the client is gone, or was dropped
        finally:
            watcher.close()
            del self._watchers[watcher]
            self._metrics.watches[resource] -= 1
        return response

    def _first(self, watcher: Watcher, view: View, options: ListOptions, asked: int) -> Iterator[bytes]:
        """What a watch tells before live events."""
        if options.send_initial:
            if asked > self._store.version:
                raise errors.too_large_version(asked, self._store.version)
            return _then(watcher.existing(), view.bookmark(self._store.version, initial_end=True))
        if asked == 0 and options.send_initial is None:
            return watcher.existing()
        return watcher.missed(asked) if asked else iter(())


def _then(frames: Iterator[bytes], last: bytes) -> Iterator[bytes]:
    yield from frames
    yield last


def _namespace(target: Target) -> str | None:
    return target.namespace if target.kind.namespaced and target.namespace else None
