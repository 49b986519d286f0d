"""`reportCycle`: at most one sample in a cycle, the newest."""

from __future__ import annotations

from mappers.sdk.samples import Sample
from mappers.sdk.sinks.gate import Gate
from tests.mappers.sink_world import sample, until


async def test_a_sample_right_after_one_that_was_held_back_waits_for_the_next_cycle() -> None:
    got: list[Sample] = []
    gate = Gate(0.2, got.append)
    gate.put(sample(0))
    gate.put(sample(1))
    gate.put(sample(2))
    assert got == [sample(0)]
    await until(lambda: len(got) == 2, "the cycle ends")
    gate.put(sample(3))
    assert got == [sample(0), sample(2)]
    gate.flush()
    assert got[2:] == [sample(3)]
    gate.flush()
    assert len(got) == 3


async def test_without_a_cycle_every_sample_passes() -> None:
    got: list[Sample] = []
    gate = Gate(0.0, got.append)
    for number in range(5):
        gate.put(sample(number))
    assert got == [sample(n) for n in range(5)]
