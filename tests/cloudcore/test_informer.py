"""The cache of one kind against a server that loses watches and forgets history."""

import asyncio
import logging
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cloudcore.kube import Informer, Key, KubeClient, Object, Page
from tests.cloudcore.list_watch_server import KIND, ListWatchServer
from tests.cloudcore.support import until


def value(obj: Object | None) -> int | None:
    return None if obj is None else int(obj["spec"]["value"])


class Whole(dict[str, Any]):
    """An object that can be looked for."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Told:
    """Folds what subscribers are told, and checks that each change starts where the last one ended."""

    def __init__(self, informer: Informer) -> None:
        self.objects: dict[Key, Object] = {}
        self.changes: list[tuple[str, int | None, int | None]] = []
        informer.subscribe(self.take)

    def take(self, key: Key, old: Object | None, new: Object | None) -> None:
        assert self.objects.get(key) == old
        assert old is not None or new is not None
        self.changes.append((key.name, value(old), value(new)))
        if new is None:
            del self.objects[key]
        else:
            self.objects[key] = new

    def values(self) -> dict[str, int]:
        return {key.name: obj["spec"]["value"] for key, obj in self.objects.items()}


@pytest.fixture
async def server() -> AsyncIterator[ListWatchServer]:
    async with ListWatchServer() as running:
        yield running


@asynccontextmanager
async def informing(server: ListWatchServer, **settings: Any) -> AsyncIterator[tuple[Informer, Told]]:
    async with await KubeClient.open(master=f"http://127.0.0.1:{server.port}") as client:
        informer = Informer(client, KIND, **settings)
        told = Told(informer)
        task = asyncio.create_task(informer.run())
        try:
            yield informer, told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def real(server: ListWatchServer) -> dict[str, int]:
    return {name: obj["spec"]["value"] for name, obj in server.objects.items()}


async def test_lists_in_pages_then_watches(server: ListWatchServer) -> None:
    for number in range(7):
        server.put(f"t{number}", number)
    async with informing(server, page_objects=3) as (informer, told):
        await informer.synced.wait()
        assert len(server.lists) == 3
        assert told.values() == real(server)
        server.put("t1", 11)
        server.delete("t2")
        server.put("new", 1)
        await until(lambda: told.values() == real(server))
        thing = informer.get(Key("default", "t3"))
        assert thing is not None
        assert "managedFields" not in thing["metadata"]
        assert (thing["kind"], thing["apiVersion"]) == ("Thing", "test.example/v1")
        assert server.watches[0]["allowWatchBookmarks"] == "true"
        assert 300 <= int(server.watches[0]["timeoutSeconds"]) <= 600


async def test_lost_watch_is_resumed_where_it_stood(server: ListWatchServer) -> None:
    server.put("a", 1)
    async with informing(server) as (_, told):
        await until(lambda: server.watches)
        server.bookmark()
        server.put("b", 1)
        await until(lambda: told.values() == real(server))
        stood = server.version
        server.break_watches()
        server.delete("a")
        server.put("b", 2)
        await until(lambda: told.values() == real(server))
        assert server.watches[-1]["resourceVersion"] == str(stood)
        assert len(server.lists) == 1
        assert told.changes == [("a", None, 1), ("b", None, 1), ("a", 1, None), ("b", 1, 2)]


@pytest.mark.parametrize("as_event", (False, True))
async def test_gone_lists_again_and_tells_what_vanished(server: ListWatchServer, as_event: bool) -> None:
    server.gone_as_event = as_event
    for name in ("stays", "goes", "changes"):
        server.put(name, 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.break_watches()
        server.delete("goes")
        server.put("changes", 2)
        server.put("comes", 1)
        server.compact()
        await until(lambda: told.values() == real(server))
        assert informer.relists == 2
        assert sorted(told.changes[3:], key=str) == [("changes", 1, 2), ("comes", None, 1), ("goes", 1, None)]


async def test_silent_connection_is_noticed(server: ListWatchServer) -> None:
    server.put("a", 1)
    server.silent = True
    async with informing(server, read_timeout_s=0.1) as (_, told):
        await until(lambda: server.watches)
        server.put("a", 2)
        await until(lambda: len(server.watches) >= 2)
        server.silent = False
        await until(lambda: told.values() == {"a": 2})


async def test_missing_kind_is_explained_once_and_retried(
    server: ListWatchServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.missing = True
    with caplog.at_level(logging.INFO):
        async with informing(server) as (informer, _):
            await until(lambda: server.refused >= 4)
            hint = (
                "the API server does not know things.test.example: install the CRDs with "
                "`kubetwin crds | kubectl apply -f -`; trying on"
            )
            assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [hint]
            server.missing = False
            await asyncio.wait_for(informer.synced.wait(), 5)


async def test_server_that_is_away_at_start_and_later(caplog: pytest.LogCaptureFixture) -> None:
    server = ListWatchServer()
    async with server:
        port = server.port
    server.port = port
    with caplog.at_level(logging.WARNING):
        async with informing(server) as (informer, told):
            await until(lambda: caplog.records)
            async with server:
                server.put("a", 1)
                await until(lambda: told.values() == {"a": 1})
            server.put("a", 2)
            async with server:
                await until(lambda: told.values() == {"a": 2})
            assert informer.synced.is_set()


async def test_observed_answers_are_ahead_of_the_watch_but_never_revive(server: ListWatchServer) -> None:
    server.put("a", 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.silent = True
        ahead = server.put("a", 2)
        informer.observe(ahead)
        assert told.values() == {"a": 2}
        server.silent = False
        server.break_watches()
        server.delete("a")
        await until(lambda: told.values() == {})
        informer.observe(ahead)
        assert told.values() == {}
        assert told.changes == [("a", None, 1), ("a", 1, 2), ("a", 2, None)]


async def test_object_made_again_while_nobody_watched(server: ListWatchServer) -> None:
    first = server.put("a", 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.break_watches()
        server.delete("a")
        second = server.put("a", 1)
        server.compact()
        await until(lambda: len(told.changes) >= 2)
        held = informer.get(Key("default", "a"))
        assert held is not None
        assert held["metadata"]["uid"] == second["metadata"]["uid"] != first["metadata"]["uid"]


async def test_what_a_watch_says_late_of_the_one_before_changes_nothing(server: ListWatchServer) -> None:
    first = server.put("a", 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.silent = True
        late = server.put("a", 2)
        server.delete("a")
        second = server.put("a", 3)
        informer.observe(dict(second))  # the watch has shown neither the change nor the deletion
        assert first["metadata"]["uid"] == late["metadata"]["uid"] != second["metadata"]["uid"]
        server.silent = False
        server.history = [entry for entry in server.history if entry[2] is not first]
        server.break_watches()
        server.put("b", 1)
        await until(lambda: told.values() == {"a": 3, "b": 1})
        assert told.changes == [("a", None, 1), ("a", 1, 3), ("b", None, 1)]


async def test_a_server_with_too_much_to_do_is_not_asked_for_a_list_on_top(server: ListWatchServer) -> None:
    server.put("a", 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.busy = 2
        server.break_watches()
        server.put("a", 2)
        await until(lambda: told.values() == {"a": 2})
        assert (informer.relists, server.busy) == (1, 0)


async def test_an_answer_that_is_no_list_deletes_nothing(server: ListWatchServer) -> None:
    server.put("a", 1)
    async with informing(server) as (informer, told):
        await until(lambda: server.watches)
        server.odd = 1
        server.break_watches()
        server.put("b", 1)
        server.put("b", 2)
        server.compact()
        await until(lambda: told.values() == {"a": 1, "b": 2})
        assert (informer.relists, server.odd) == (2, 0)
        assert told.changes == [("a", None, 1), ("b", None, 2)]


async def test_one_odd_object_does_not_stand_in_the_way_of_the_others(
    server: ListWatchServer, caplog: pytest.LogCaptureFixture
) -> None:
    def slim(obj: Object) -> Object:
        return {**obj, "spec": {"value": int(obj["spec"]["value"])}}

    server.put("a", 1)
    server.put("odd", 1)["spec"] = 7
    async with informing(server, slim=slim) as (informer, told):
        await until(lambda: told.values() == {"a": 1})
        server.put("odd", 1)
        await until(lambda: told.values() == {"a": 1, "odd": 1})
        server.put("odd", 2)["spec"] = None
        server.put("a", 2)
        await until(lambda: told.values() == {"a": 2, "odd": 1}, what="it stays as it could be read last")
        server.break_watches()
        server.put("a", 3)
        server.compact()
        await until(lambda: informer.relists == 2)
        assert told.values() == {"a": 3, "odd": 1}
    assert {r.message for r in caplog.records if r.exc_info} == {"things default/odd: cannot be read, and is left out"}


async def test_a_long_list_is_made_small_page_by_page(server: ListWatchServer) -> None:
    for number in range(40):
        server.put(f"t{number}", number)
    whole: weakref.WeakSet[Whole] = weakref.WeakSet()

    class Client(KubeClient):
        async def list_page(self, *args: Any, **kwargs: Any) -> Page:
            page = await super().list_page(*args, **kwargs)
            assert len(whole) <= 10, "no more than the page before"
            items: list[Object] = [Whole(item) for item in page.items]
            whole.update(item for item in items if isinstance(item, Whole))
            return msgspec.structs.replace(page, items=items)

    async with await Client.open(master=f"http://127.0.0.1:{server.port}") as client:
        informer = Informer(client, KIND, page_objects=10, slim=lambda obj: {"metadata": obj["metadata"]})
        task = asyncio.create_task(informer.run())
        async with asyncio.timeout(5):
            await informer.synced.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(server.lists) == 4
    assert len(informer) == 40


async def test_subscriber_that_fails_does_not_end_the_watch(server: ListWatchServer) -> None:
    async with informing(server) as (informer, told):

        def fail(key: Key, old: Object | None, new: Object | None) -> None:
            raise ValueError(key)

        informer._subscribers.insert(0, fail)
        server.put("a", 1)
        await until(lambda: told.values() == {"a": 1})


@pytest.mark.parametrize("seed", range(5))
async def test_any_history_of_changes_breaks_and_compactions(server: ListWatchServer, seed: int) -> None:
    chance = random.Random(seed)
    async with informing(server, page_objects=2) as (informer, told):
        for _ in range(150):
            name = f"t{chance.randrange(6)}"
            match chance.randrange(10):
                case 0 if name in server.objects:
                    server.delete(name)
                case 1:
                    server.break_watches()
                case 2:
                    server.compact()
                case 3:
                    server.bookmark()
                case 4:
                    await asyncio.sleep(chance.random() * 0.02)
                case 5:
                    informer.observe(dict(server.put(name, chance.randrange(100))))
                case _:
                    server.put(name, chance.randrange(100))
        await until(lambda: told.values() == real(server))
