"""How Leases of nodes are written when many nodes come at once."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloudcore.kube import NotFound, Object
from cloudcore.replicas import Replicas, ReplicaSettings
from cloudcore.replicas.leases import node_key, replica_key
from cloudcore.replicas.own import OwnLease
from cloudcore.replicas.pace import Pace
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Kubernetes, until

LEASE_S = 2.0


async def at_once() -> None:
    """There is no renewal on its way."""


class Writes:
    """Turns that are held open until they are let go."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.began: list[int] = []
        self.ends: dict[int, asyncio.Event] = {}

    async def write(self, number: int) -> None:
        end = self.ends[number] = asyncio.Event()
        async with self.pace.turn():
            self.began.append(number)
            await end.wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_come_in_order_and_a_few_at_a_time() -> None:
    writes = Writes(Pace(at_once, most=2))
    tasks = [asyncio.create_task(writes.write(number)) for number in range(5)]
    await turns()
    assert writes.began == [0, 1]
    tasks[2].cancel()
    writes.ends[1].set()
    await turns()
    assert writes.began == [0, 1, 3], "who has gone is left out"
    for end in writes.ends.values():
        end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert writes.began == [0, 1, 3, 4]


async def test_slow_answers_make_it_slower_and_quick_ones_faster() -> None:
    pace = Pace(at_once, most=8, slow_s=0.05)

    async def slow() -> None:
        async with pace.turn():
            await asyncio.sleep(0.06)

    await asyncio.gather(*(slow() for _ in range(8)))
    assert pace.width == 4, "those that were on their way together count once"
    for _ in range(5):
        await slow()
    assert pace.width == 1
    for _ in range(40):
        async with pace.turn():
            pass
    assert pace.width == 8


async def test_nothing_is_written_while_a_renewal_is_on_its_way() -> None:
    settled = asyncio.Event()

    async def wait() -> None:
        await settled.wait()

    writes = Writes(Pace(wait, most=2))
    tasks = [asyncio.create_task(writes.write(number)) for number in range(3)]
    await turns()
    assert writes.began == []
    settled.set()
    await turns()
    assert writes.began == [0, 1]
    writes.ends[0].set()
    writes.ends[1].set()
    await turns()
    writes.ends[2].set()
    await asyncio.gather(*tasks)


async def test_a_watch_that_lags_by_more_than_a_renewal_holds_up_nobody_for_good() -> None:
    late: list[Object] = []
    regained = asyncio.Event()

    class Lagging(Kubernetes):
        """An API server whose watch is always three renewals behind."""

        async def _call(self, method: str, path: str, **how: Any) -> Object:
            if method == "GET":
                raise NotFound("there is none yet")
            late.append(how["body"])
            if len(late) > 3:
                own.seen(late.pop(0))
            return dict(how["body"])

    async with await Lagging.open(master="http://127.0.0.1:1") as client:
        own = OwnLease(client, "a", renew_s=0.01, lease_s=5.0, regained=regained.set)
        renewing = asyncio.create_task(own.run())
        async with asyncio.timeout(5):
            await regained.wait()
            for _ in range(3):
                assert late, "renewals are on their way all the time"
                async with Pace(own.settled).turn():
                    pass
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


async def test_a_turn_that_came_as_its_writer_gave_up_goes_to_the_next() -> None:
    writes = Writes(Pace(at_once, most=1))
    tasks = [asyncio.create_task(writes.write(number)) for number in range(3)]
    await turns()
    writes.ends[0].set()
    await asyncio.sleep(0)
    assert tasks[0].done(), "it is the second one's turn, which it has not heard of yet"
    tasks[1].cancel()
    await turns()
    assert writes.began == [0, 2]
    writes.ends[2].set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_turn_is_lost_whoever_gives_up_and_whenever() -> None:
    rng, pace = random.Random(3), Pace(at_once, most=3)
    running = most = 0

    async def write() -> None:
        nonlocal running, most
        async with pace.turn():
            running += 1
            most = max(most, running)
            try:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                if rng.random() < 0.2:
                    raise ConnectionError
            finally:
                running -= 1

    tasks = [asyncio.create_task(write()) for _ in range(300)]
    while not all(task.done() for task in tasks):
        rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert (running, most) == (0, 3)
    again = Writes(pace)
    tasks = [asyncio.create_task(again.write(number)) for number in range(4)]
    await turns()
    assert again.began == [0, 1, 2], "all turns are there again"
    for end in again.ends.values():
        end.set()
    await turns()
    again.ends[3].set()
    await asyncio.gather(*tasks)
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        await asyncio.gather(*tasks)


class Client(Kubernetes):
    """Lists what is asked of Leases, and can hold renewals up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[tuple[str, str]] = []
        self.renewing = asyncio.Event()
        self.held: asyncio.Event | None = None

    async def _call(self, method: str, path: str, **how: Any) -> Object:
        name = (how.get("body") or {}).get("metadata", {}).get("name", "") or path.rpartition("/")[2]
        self.asked.append((method, name))
        if self.held is not None and method == "PUT" and name.startswith("kubetwin-replica."):
            self.renewing.set()
            await self.held.wait()
        return await super()._call(method, path, **how)


@contextlib.asynccontextmanager
async def replica(api: ApiServer, name: str, own: Client | None = None) -> AsyncIterator[tuple[Replicas, Client]]:
    async with await Client.open(kubeconfig=str(api.kubeconfig)) as client:
        settings = ReplicaSettings(name=name, renew_s=LEASE_S / 6, lease_s=LEASE_S, look_s=0.05)
        replicas = Replicas(client, settings, own_client=own)
        running = asyncio.create_task(replicas.run())
        try:
            async with asyncio.timeout(10):
                await replicas.granted()
            yield replicas, client
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def test_a_node_that_comes_for_the_first_time_costs_one_request(api: ApiServer) -> None:
    async with replica(api, "a") as (a, client):
        assert not a.acquire_now("edge-1")
        await a.acquire("edge-1")
        name = node_key("edge-1").name
        assert [asked for asked in client.asked if asked[1] == name] == [("POST", name)]


async def test_renewals_go_their_own_way_and_first(api: ApiServer) -> None:
    async with await Client.open(kubeconfig=str(api.kubeconfig)) as own, replica(api, "a", own) as (a, client):
        assert ("PUT", replica_key("a").name) not in client.asked
        own.held = asyncio.Event()
        async with asyncio.timeout(10):
            await own.renewing.wait()
        coming = asyncio.create_task(a.acquire("edge-1"))
        await asyncio.sleep(0.1)
        assert not any(name == node_key("edge-1").name for _, name in client.asked)
        own.held.set()
        own.held = None
        async with asyncio.timeout(10):
            await coming
        assert a.writes_for("edge-1")


async def test_a_node_whose_owner_this_replica_is_needs_no_waiting(api: ApiServer) -> None:
    async with replica(api, "a") as (a, _):
        await a.acquire("edge-1")
    lost: list[tuple[str, str]] = []
    async with replica(api, "a") as (again, _), replica(api, "b") as (b, _):
        again.subscribe(lost=lambda node, by: lost.append((node, by)))
        assert again.absent_nodes() == ["edge-1"]
        assert again.acquire_now("edge-1")
        assert again.absent_nodes() == []
        assert not b.acquire_now("edge-1")
        await b.acquire("edge-1")
        await until(lambda: lost[:1] == [("edge-1", "b")], what="it is told that b has the node now")
        assert not again.acquire_now("edge-1")
        assert b.acquire_now("edge-1")


@pytest.mark.parametrize("held", (True, False))
async def test_a_node_is_not_taken_on_a_lease_that_has_run_out(api: ApiServer, held: bool) -> None:
    async with await Client.open(kubeconfig=str(api.kubeconfig)) as own, replica(api, "a", own) as (a, _):
        await a.acquire("edge-1")
        if held:
            own.held = asyncio.Event()
            await until(lambda: not a.status().valid, what="its Lease has run out")
        assert a.acquire_now("edge-1") is not held
        if own.held is not None:
            own.held.set()
