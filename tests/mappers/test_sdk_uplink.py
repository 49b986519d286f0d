"""The uplink against edge cores that are slow, away or full: the two calls are our own seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from dmi.errors import PeerRefused, PeerUnavailable
from dmi.twins import Reported, Twin
from dmi.types import DeviceId, DeviceState
from mappers.sdk import uplink as module
from mappers.sdk.testing.clock import virtual_time
from mappers.sdk.uplink import Uplink
from tests.mappers.mapper_world import eventually

A, B = DeviceId("plant/a"), DeviceId("plant/b")


def twin(name: str, value: str) -> Twin:
    return Twin(name, Reported(value))


class Peer:
    def __init__(self) -> None:
        self.got: list[tuple[DeviceId, dict[str, str]]] = []
        self.states: list[tuple[DeviceId, str]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self.at_once: dict[DeviceId, int] = {}
        self.most = 0

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        self.calls += 1
        self.at_once[device] = self.at_once.get(device, 0) + 1
        assert self.at_once[device] == 1
        self.most = max(self.most, sum(self.at_once.values()))
        try:
            await self.gate.wait()
            if self.fault:
                raise self.fault
            self.got.append((device, {t.property_name: t.reported.value for t in twins}))
        finally:
            self.at_once[device] -= 1

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "") -> None:
        if self.fault:
            raise self.fault
        self.states.append((device, state))


@asynccontextmanager
async def sending(peer: Peer) -> AsyncIterator[Uplink]:
    uplink = Uplink(peer)
    task = asyncio.create_task(uplink.run())
    try:
        yield uplink
    finally:
        task.cancel()
        await asyncio.wait([task])


async def drained(uplink: Uplink) -> None:
    async with asyncio.timeout(5):
        await uplink.drained()


async def test_while_a_call_is_under_way_the_newest_wins() -> None:
    peer = Peer()
    peer.gate.clear()
    async with sending(peer) as uplink:
        uplink.open()
        uplink.put_twins(A, [twin("x", "1"), twin("y", "1")])
        await eventually(lambda: peer.calls == 1)
        for value in ("2", "3", "4"):
            uplink.put_twins(A, [twin("x", value)])
        peer.gate.set()
        await drained(uplink)
    assert peer.got == [(A, {"x": "1", "y": "1"}), (A, {"x": "4"})]


async def test_devices_do_not_wait_for_each_other_and_calls_are_bounded() -> None:
    peer = Peer()
    peer.gate.clear()
    async with sending(peer) as uplink:
        uplink.open()
        devices = [DeviceId(f"plant/d{i}") for i in range(40)]
        for device in devices:
            uplink.put_twins(device, [twin("x", "1")])
        await eventually(lambda: peer.calls == module.IN_FLIGHT)
        peer.gate.set()
        await drained(uplink)
    assert peer.most == module.IN_FLIGHT
    assert sorted(d for d, _ in peer.got) == sorted(devices)


async def test_nothing_is_sent_before_the_registration_and_nothing_is_lost() -> None:
    peer = Peer()
    async with sending(peer) as uplink:
        uplink.put_twins(A, [twin("x", "1")])
        uplink.put_twins(A, [twin("x", "2"), twin("y", "1")])
        uplink.put_state(A, "online", "")
        uplink.put_state(A, "offline", "gone")
        await asyncio.sleep(0)
        assert peer.calls == 0
        uplink.open()
        await drained(uplink)
    assert peer.got == [(A, {"x": "2", "y": "1"})]
    assert peer.states == [(A, "offline")]


async def test_an_edge_core_that_went_away_gets_the_newest_when_it_is_back() -> None:
    peer = Peer()
    peer.fault = PeerUnavailable("gone")
    async with sending(peer) as uplink:
        uplink.open()
        uplink.put_twins(A, [twin("x", "1"), twin("y", "1")])
        async with asyncio.timeout(5):
            await uplink.lost.wait()
        uplink.put_twins(A, [twin("x", "2")])
        peer.fault = None
        uplink.open()
        await drained(uplink)
    assert peer.got == [(A, {"x": "2", "y": "1"})]


async def test_a_refused_report_is_made_again_and_harms_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.05, 0.2))
    peer = Peer()
    peer.fault = PeerRefused("NOT_FOUND", "no such device")
    async with sending(peer) as uplink:
        uplink.open()
        uplink.put_twins(A, [twin("x", "1")])
        await eventually(lambda: peer.calls >= 2)
        peer.fault = None
        uplink.put_twins(A, [twin("x", "2")])
        uplink.put_twins(B, [twin("x", "1")])
        await drained(uplink)
    assert peer.got == [(B, {"x": "1"}), (A, {"x": "2"})]


async def test_a_full_edge_core_is_paced_and_every_device_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock edge cores take one call a second; here one in 40 ms."""
    monkeypatch.setattr(module, "PACED_S", 0.05)
    loop = asyncio.get_running_loop()

    class Full(Peer):
        refused = 0
        free_at = 0.0

        async def report_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
            if loop.time() < self.free_at:
                self.refused += 1
                raise PeerRefused("UNKNOWN", "fail to report device status because of too many request: a")
            self.free_at = loop.time() + 0.04
            await super().report_twins(device, twins)

    peer = Full()
    devices = [DeviceId(f"plant/d{i}") for i in range(10)]
    async with sending(peer) as uplink:
        uplink.open()
        for device in devices:
            uplink.put_twins(device, [twin("x", "1")])
        await drained(uplink)
    assert sorted(d for d, _ in peer.got) == sorted(devices)
    assert peer.refused <= module.IN_FLIGHT


async def test_a_removed_device_says_nothing_more() -> None:
    peer = Peer()
    async with sending(peer) as uplink:
        uplink.put_twins(A, [twin("x", "1")])
        uplink.put_twins(B, [twin("x", "1")])
        uplink.forget(A)
        uplink.open()
        await drained(uplink)
    assert peer.got == [(B, {"x": "1"})]


async def test_a_device_removed_and_added_again_reports_once_at_a_time() -> None:
    peer = Peer()
    async with sending(peer) as uplink:
        uplink.put_twins(A, [twin("x", "1")])
        uplink.forget(A)
        uplink.put_twins(A, [twin("x", "2")])
        uplink.open()
        await drained(uplink)
        uplink.put_twins(A, [twin("x", "3")])
        await drained(uplink)
    assert peer.got == [(A, {"x": "2"}), (A, {"x": "3"})]


class Bucket(Peer):
    """Takes `burst` calls at once and then one a second, as a stock edge core does."""

    def __init__(self, burst: int) -> None:
        super().__init__()
        self.tokens = float(burst)
        self.burst = burst
        self.refused = 0
        self.at = asyncio.get_running_loop().time()

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        now = asyncio.get_running_loop().time()
        self.tokens = min(self.burst, self.tokens + now - self.at)
        self.at = now
        if self.tokens < 1:
            self.refused += 1
            raise PeerRefused("UNKNOWN", "fail to report device status because of too many request: x")
        self.tokens -= 1
        await super().report_twins(device, twins)


DEVICES = [DeviceId(f"plant/d{i:02}") for i in range(12)]


@virtual_time
async def test_while_paced_changes_go_before_confirmations_and_the_longest_waiting_first() -> None:
    peer = Bucket(3)
    async with sending(peer) as uplink:
        uplink.open()
        for device in DEVICES:
            uplink.put_twins(device, [twin("x", "1")], news=False)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1.5)  # paced by now; three went at once, and one after a second
        assert len(peer.got) == 4
        uplink.put_twins(DEVICES[11], [twin("x", "2")], news=False)  # of the last in the queue, and no news either
        uplink.put_twins(DEVICES[9], [twin("x", "9")])
        uplink.put_twins(DEVICES[7], [twin("x", "7")])
        await uplink.drained()
    order = [d for d, _ in peer.got[4:]]
    rest = [d for d in DEVICES if d not in [got for got, _ in peer.got[:4]] and d not in (DEVICES[7], DEVICES[9])]
    assert order == [DEVICES[7], DEVICES[9], *rest]  # d07 had something to say before d09
    assert dict(peer.got)[DEVICES[11]] == {"x": "2"}
    assert peer.refused <= module.IN_FLIGHT


@virtual_time
async def test_while_paced_no_device_goes_without_for_the_others_changes() -> None:
    """Twelve devices change every second; one only confirms. All have their turn, and the edge core refuses nothing."""
    peer = Bucket(5)
    quiet = DeviceId("plant/quiet")
    async with sending(peer) as uplink:
        uplink.open()
        for second in range(600):
            for device in DEVICES:
                uplink.put_twins(device, [twin("x", str(second))])
            if second % 10 == 0:
                uplink.put_twins(quiet, [twin("x", "1")], news=False)
            await asyncio.sleep(1)
        counts = {d: sum(got == d for got, _ in peer.got) for d in [*DEVICES, quiet]}
        assert uplink.queue_depth >= len(DEVICES) - 1
    busy = [counts[d] for d in DEVICES]
    assert max(busy) - min(busy) <= 2
    assert sum(busy) + counts[quiet] > 550
    assert 8 <= counts[quiet] <= 600 / module.YIELD_S
    assert peer.refused <= module.IN_FLIGHT
    newest = max(int(values["x"]) for device, values in peer.got if device != quiet)
    assert newest >= 597


@virtual_time
async def test_pacing_ends_when_there_is_nothing_left_to_say() -> None:
    peer = Bucket(4)
    async with sending(peer) as uplink:
        uplink.open()
        for device in DEVICES:
            uplink.put_twins(device, [twin("x", "1")])
        await uplink.drained()
        assert not uplink.is_paced()
        await asyncio.sleep(60)  # a full bucket again
        before = asyncio.get_running_loop().time()
        for device in DEVICES[:4]:
            uplink.put_twins(device, [twin("x", "2")])
        await uplink.drained()
        assert asyncio.get_running_loop().time() - before < 1.2
    assert sorted(d for d, v in peer.got if v == {"x": "2"}) == DEVICES[:4]


async def test_a_state_goes_before_the_twins_of_its_device() -> None:
    order: list[str] = []

    class Noting(Peer):
        async def report_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
            order.append("twins")

        async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "") -> None:
            order.append("state")

    async with sending(Noting()) as uplink:
        uplink.put_twins(A, [twin("x", "1")])
        uplink.put_state(A, "online", "")
        uplink.open()
        await drained(uplink)
    assert order == ["state", "twins"]


async def test_what_was_sent_refused_and_how_late_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(module, "epoch_ms", lambda: 100_000)
    accepted: list[tuple[DeviceId, int]] = []
    peer = Peer()
    peer.fault = PeerRefused("NOT_FOUND", "no such device")
    async with sending(peer) as uplink:
        uplink.on_accepted = lambda device, oldest_ms: accepted.append((device, oldest_ms))
        uplink.open()
        assert uplink.queue_depth == 0
        uplink.put_twins(
            A,
            [
                Twin("a", Reported("1", collected_ms=99_000)),
                Twin("b", Reported("1", collected_ms=98_000)),
                Twin("c", Reported("1", collected_ms=1, quality="stale")),
                Twin("d"),
            ],
        )
        await eventually(lambda: uplink.report_failures >= 2)
        assert (uplink.reports, uplink.queue_depth, uplink.lag.total_s) == (0, 1, 0.0)
        peer.fault = None
        await drained(uplink)
        assert (uplink.reports, uplink.queue_depth, uplink.lag.total_s) == (1, 0, 2.0)
        assert accepted == [(A, 98_000)]
        uplink.forget(A)
        uplink.put_twins(A, [twin("x", "1")])
        uplink.forget(A)
        assert uplink.queue_depth == 0


@virtual_time
async def test_who_was_refused_keeps_its_place() -> None:
    class Full(Peer):
        async def report_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
            if self.calls < 2:
                self.calls += 1
                await asyncio.sleep(1.0 if device == A else 0.2)
                raise PeerRefused("UNKNOWN", "too many request")
            await super().report_twins(device, twins)

    peer = Full()
    async with sending(peer) as uplink:
        uplink.open()
        await asyncio.sleep(0.5)
        uplink.put_twins(A, [twin("x", "1")])
        await asyncio.sleep(0.1)
        uplink.put_twins(B, [twin("x", "1")])
        await uplink.drained()
    assert [device for device, _ in peer.got] == [A, B]


async def test_a_report_that_cannot_be_sent_at_all_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.01))
    peer = Peer()
    peer.fault = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
    async with sending(peer) as uplink:
        uplink.open()
        uplink.put_twins(A, [twin("x", "1")])
        await eventually(lambda: uplink.report_failures > 0)
        peer.fault = None
        uplink.put_twins(B, [twin("x", "2")])
        await drained(uplink)
    assert sorted(peer.got) == [(A, {"x": "1"}), (B, {"x": "2"})]
