"""Several mappers of one protocol that come, go and are killed: every device is read on, and by one at a time."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dmi import DeviceId
from edgecore.devicetwin import registration, spread
from edgecore.devicetwin.spread import Member, claim_of, owner_of
from tests.edgecore.conftest import Edge
from tests.edgecore.noting_mapper import notes_of
from tests.edgecore.peers import FakeCloud, device_object, model_object

DEVICES = [DeviceId(f"default/gauge-{n}") for n in range(8)]
NAMES = ("one", "two", "three")
names = st.sampled_from(NAMES)
devices = st.sampled_from(DEVICES)


many = st.lists(st.text("abcdefgh-0123456789", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@given(many, st.text(min_size=1, max_size=20))
def test_a_mapper_that_leaves_moves_only_its_own_devices(mappers: list[str], device: str) -> None:
    id_ = DeviceId(f"default/{device}")
    owner = owner_of(id_, mappers)
    assert owner in mappers
    for gone in mappers:
        left = [m for m in mappers if m != gone]
        if gone != owner:
            assert owner_of(id_, left) == owner
        elif left:
            assert owner_of(id_, left) in left
    assert owner_of(id_, reversed(mappers)) == owner


def test_shares_are_about_even() -> None:
    mappers = ["a", "b", "c"]
    devices = [DeviceId(f"default/device-{n}") for n in range(3000)]
    shares = [sum(owner_of(d, mappers) == m for d in devices) for m in mappers]
    assert all(900 <= share <= 1100 for share in shares), shares


def test_the_share_of_a_device_never_changes() -> None:
    """Another edge core, or a later version, must come to the same answer."""
    owners = [owner_of(id_, ["one", "two"]) for id_ in [DeviceId(f"default/boiler-{n}") for n in range(8)]]
    assert owners == ["one", "one", "two", "one", "two", "one", "one", "one"]


four = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())


@given(st.lists(four, min_size=1, max_size=4), st.booleans())
def test_never_two_are_told_to_run_a_device(states: list[tuple[bool, bool, bool, bool]], pinned: bool) -> None:
    members = [
        Member(str(i), answering=answering, alive=answering or alive or runs, holds=holds, runs=runs)
        for i, (answering, alive, holds, runs) in enumerate(states)
    ]
    claims = {m.name: claim_of(DEVICES[0], m.name, members, pinned="0" if pinned else "") for m in members}
    running = [name for name, claim in claims.items() if claim == "run"]
    assert len(running) <= 1
    for name in running:
        assert not any(m.holds and (m.answering or m.runs) for m in members if m.name != name)
    if not any(m.holds and (m.answering or m.runs) for m in members):
        assert len(running) == 1  # nobody in the way: somebody runs it


class Peer:
    """A mapper, and what its link in the edge core knows of it."""

    def __init__(self) -> None:
        self.known = self.answering = self.alive = self.beginning = self.lives = False
        self.holds: set[DeviceId] = set()
        self.told: set[DeviceId] = set()
        """Being handed over: the call is under way."""
        self.runs: set[DeviceId] = set()
        """In truth."""


class Sharing(RuleBasedStateMachine):
    """Links settle devices in any order while mappers register, die, and are given up, as `links.py` does it: noted
    as held, compared again, then called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peers = {name: Peer() for name in NAMES}

    def claim(self, name: str, device: DeviceId) -> str:
        members = [
            Member(other, answering=p.answering, alive=p.alive, holds=device in p.holds, runs=p.beginning)
            for other, p in self.peers.items()
            if p.known
        ]
        return claim_of(device, name, members)

    @rule(name=names)
    def register(self, name: str) -> None:
        """Also again, as after a quick restart: what it was told before does not count any more."""
        peer = self.peers[name]
        peer.known = peer.alive = peer.beginning = peer.lives = True
        peer.answering, peer.told = False, set()  # what it had before it may have until it has the answer
        share = {d for d in DEVICES if self.claim(name, d) == "run"}
        peer.holds, peer.runs = set(share), set(share)

    @rule(name=names)
    def reach(self, name: str) -> None:
        """The connection to it is made, some time after its registration."""
        peer = self.peers[name]
        if peer.lives:
            peer.answering, peer.beginning = True, False

    @rule(name=names)
    def kill(self, name: str) -> None:
        peer = self.peers[name]
        peer.answering, peer.lives, peer.told, peer.runs = False, False, set(), set()

    @precondition(lambda self: any(p.known and p.alive and not p.answering for p in self.peers.values()))
    @rule(name=names)
    def wait(self, name: str) -> None:
        self.reach(name)
        peer = self.peers[name]
        peer.alive, peer.beginning = peer.answering, False

    @rule(name=names, device=devices)
    def begin(self, name: str, device: DeviceId) -> None:
        peer = self.peers[name]
        if not (peer.known and peer.answering) or device in peer.told:
            return
        claim = self.claim(name, device)
        if claim == "run" and device not in peer.runs:
            peer.holds.add(device)
            if self.claim(name, device) == "run":
                peer.told.add(device)
        elif claim == "drop" and device in peer.holds:
            peer.runs.discard(device)
            peer.holds.discard(device)

    @rule(name=names, device=devices)
    def finish(self, name: str, device: DeviceId) -> None:
        peer = self.peers[name]
        if device in peer.told:
            peer.told.discard(device)
            peer.runs.add(device)

    @invariant()
    def never_twice(self) -> None:
        for device in DEVICES:
            runners = [name for name, p in self.peers.items() if device in p.runs]
            assert len(runners) <= 1, f"{device} is run by {runners}"

    def teardown(self) -> None:
        """Left alone for longer than the grace, everything comes to rest with each device at one that lives."""
        for name in NAMES:
            self.wait(name)
        for _ in range(4):
            for name in NAMES:
                for device in DEVICES:
                    self.begin(name, device)
                    self.finish(name, device)
        self.never_twice()
        living = [p for p in self.peers.values() if p.answering]
        if living:
            assert set().union(*(p.runs for p in living)) == set(DEVICES)


Sharing.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSharing = Sharing.TestCase


# As processes


@contextlib.asynccontextmanager
async def noting_mapper(name: str, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.edgecore.noting_mapper",
        name,
        directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def declare_gauges(cloud: FakeCloud) -> None:
    await cloud.put(model_object("gauge", "noting", {"level": "INT"}))
    for id_ in DEVICES:
        device = device_object(id_.removeprefix("default/"), model="gauge", protocol="noting", properties=["level"])
        device["spec"]["protocol"]["configData"] = {}
        device["spec"]["properties"][0] |= {"visitors": {"configData": {}}, "collectCycle": 50}
        await cloud.put(device)


def readers(directory: Path, since: float) -> dict[str, set[str]]:
    """Device → who read it lately."""
    found: dict[str, set[str]] = {}
    for note in notes_of(directory):
        if note.what == "read" and note.at >= since:
            found.setdefault(note.device, set()).add(note.mapper)
    return found


async def until_all_are_read(directory: Path, by: int) -> None:
    """Each device is read by exactly one, and `by` mappers have a share."""
    async with asyncio.timeout(60):
        while True:
            since = asyncio.get_running_loop().time()
            await asyncio.sleep(0.4)
            found = readers(directory, since)
            everyone = set().union(*found.values()) if found else set()
            if len(found) == len(DEVICES) and all(len(r) == 1 for r in found.values()) and len(everyone) == by:
                return


def longest_gap(directory: Path, device: str, since: float, until: float) -> float:
    """Seconds that the device went unread."""
    at = [
        since,
        *(n.at for n in notes_of(directory) if n.device == device and n.what == "read" and n.at > since),
        until,
    ]
    return max(later - earlier for earlier, later in itertools.pairwise(at))


def held_twice(directory: Path) -> list[str]:
    """Devices that one mapper opened or read while another one had them open. A killed one holds nothing from its last
    note on, which is when its successor may begin.
    """
    notes, wrong = notes_of(directory), []
    last = {(n.mapper, n.device): n.at for n in notes}
    held: dict[str, str] = {}
    for n in notes:
        holder = held.get(n.device)
        if holder not in (None, n.mapper) and last[holder, n.device] > n.at:
            wrong.append(f"{n.device}: {n.mapper} {n.what}s it while {holder} has it")
        if n.what == "close":
            if holder == n.mapper:
                del held[n.device]
        else:
            held[n.device] = n.mapper
    return wrong


async def test_devices_of_a_killed_mapper_are_read_on_by_the_other_and_by_one_only(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 1.0)
    await declare_gauges(cloud)
    async with noting_mapper("one", tmp_path), noting_mapper("two", tmp_path) as two:
        await until_all_are_read(tmp_path, by=2)
        loop = asyncio.get_running_loop()
        killed_at = loop.time()
        two.kill()
        await until_all_are_read(tmp_path, by=1)
        cloud.twins.clear()
        await cloud.until(lambda: {device for device, _ in cloud.twins} == set(DEVICES), "all of them are reported")
        gaps = [longest_gap(tmp_path, device, killed_at, loop.time()) for device in DEVICES]
        assert max(gaps) > 0.9  # those of the killed one: not before its grace was over
        assert max(gaps) < 1.0 + 5.0, gaps  # and soon after it; the rest is for a loaded machine
        async with noting_mapper("two", tmp_path):
            await until_all_are_read(tmp_path, by=2)
    assert not held_twice(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_three_mappers_come_and_go_at_random(edge: Edge, cloud: FakeCloud, tmp_path: Path) -> None:
    """A minute with the grace as it is: killed, stopped and started, one of them running all the time."""
    await declare_gauges(cloud)
    rng = random.Random(3)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(noting_mapper("one", tmp_path))
        others: dict[str, asyncio.subprocess.Process | None] = {"two": None, "three": None}
        await until_all_are_read(tmp_path, by=1)
        began = loop.time()
        while loop.time() - began < 60:
            name = rng.choice(list(others))
            if (process := others[name]) is None:
                others[name] = await stack.enter_async_context(noting_mapper(name, tmp_path))
            else:
                process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
                await process.wait()
                others[name] = None
            await asyncio.sleep(rng.choice((0.2, 2.0, 8.0)))
        ended = loop.time()
        await until_all_are_read(tmp_path, by=1 + sum(p is not None for p in others.values()))
        gaps = {device: longest_gap(tmp_path, device, began, ended) for device in DEVICES}
    assert not held_twice(tmp_path)
    assert max(gaps.values()) < 2 * spread.MOVE_GRACE_S + 5.0, gaps  # its second owner may die while it has the first's


async def test_devices_that_do_not_fit_into_the_answer_go_on_over_a_restart_of_edge_core(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stopped only to be handed over again; what was removed meanwhile is stopped."""
    await declare_gauges(cloud)
    async with noting_mapper("one", tmp_path) as process:
        await until_all_are_read(tmp_path, by=1)
        await edge.stop()
        del cloud.objects["Device/default/gauge-0"]
        monkeypatch.setattr(registration, "_ANSWER_BYTES", 300)
        await edge.start()
        async with asyncio.timeout(30):
            while DEVICES[0] not in closed(tmp_path):  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(0.05)
        since = asyncio.get_running_loop().time()
        async with asyncio.timeout(30):
            while set(readers(tmp_path, since)) != set(DEVICES[1:]):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
        assert closed(tmp_path) == [DEVICES[0]]
        process.terminate()
        await process.wait()


def closed(directory: Path) -> list[str]:
    return [note.device for note in notes_of(directory) if note.what == "close"]
