"""The bounded box, against a simple list."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgecore.eventbus.outbox import Outbox

MAX_ITEMS = 5
MAX_BYTES = 30


class Boxes(RuleBasedStateMachine):
    """Items are bytes; the reference is a list of (slot, item) in order."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = 0
        self.expected_drops = 0
        self.box: Outbox[bytes] = Outbox(max_items=MAX_ITEMS, max_bytes=MAX_BYTES, size=len, dropped=self._drop)
        self.reference: list[tuple[Any, bytes]] = []
        self.numbers = 0
        self.taken: tuple[object, bytes] | None = None

    def _drop(self) -> None:
        self.drops += 1

    @rule(item=st.binary(max_size=35), key=st.one_of(st.none(), st.sampled_from("abc")))
    def put(self, item: bytes, key: str | None) -> None:
        self.box.put(item, key)
        if len(item) > MAX_BYTES:
            self.expected_drops += 1
            return
        slot: Any = key
        if key is None:
            self.numbers += 1
            slot = self.numbers
        slots = [one for one, _ in self.reference]
        if slot in slots:
            self.reference[slots.index(slot)] = (slot, item)
        else:
            self.reference.append((slot, item))
        while len(self.reference) > MAX_ITEMS or sum(len(one) for _, one in self.reference) > MAX_BYTES:
            self.reference.pop(0)
            self.expected_drops += 1

    @precondition(lambda self: self.reference and self.taken is None)
    @rule()
    def get(self) -> None:
        self.taken = asyncio.run(self.box.get())
        assert self.taken == self.reference.pop(0)

    @precondition(lambda self: self.taken is not None)
    @rule(fails=st.booleans())
    def settle(self, fails: bool) -> None:
        assert self.taken is not None
        slot, item = self.taken
        self.taken = None
        if not fails:
            return
        self.box.put_back(slot, item)
        if slot in [one for one, _ in self.reference]:
            return  # a newer one waits
        total = sum(len(one) for _, one in self.reference)
        if len(self.reference) >= MAX_ITEMS or total + len(item) > MAX_BYTES:
            self.expected_drops += 1
        else:
            self.reference.insert(0, (slot, item))

    @invariant()
    def same(self) -> None:
        assert len(self.box) == len(self.reference)
        assert self.drops == self.expected_drops


TestBoxes = Boxes.TestCase
TestBoxes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


async def test_who_waits_for_something_gets_it_and_who_is_cancelled_takes_nothing() -> None:
    box: Outbox[bytes] = Outbox(max_items=5, max_bytes=100, size=len, dropped=lambda: None)
    first = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(b"x")
    assert (await second)[1] == b"x"


async def test_room_is_when_less_than_half_is_taken() -> None:
    box: Outbox[bytes] = Outbox(max_items=4, max_bytes=100, size=len, dropped=lambda: None)
    for _ in range(3):
        box.put(b"x")
    waiting = asyncio.create_task(box.has_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(2):
        await box.get()
    await asyncio.wait_for(waiting, 5)
