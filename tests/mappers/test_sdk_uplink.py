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
