"""Who is next on a shared line: a model of waiting units, and what must hold in any order of events."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mappers.sdk.silence import MAX_GRACE_S, MIN_GRACE_S, PATIENT_EVERY, Silences
from mappers.sdk.turns import PATIENCE, Rank, Turns

DEVICES = ("a", "b", "c", "d")
RANKS: tuple[Rank, ...] = ("write", "read", "probe")


_numbers = itertools.count()


class Waiting:
    def __init__(self, device: str, rank: Rank) -> None:
        self.device = device
        self.rank: Rank = rank
        self.came = next(_numbers)


class Scheduling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[Waiting] = Turns()
        self.waiting: list[Waiting] = []
        self.passed: dict[Rank, int] = dict.fromkeys(RANKS, 0)
        """Turns of higher ranks since one of this rank had one."""
        self.overtaken: dict[tuple[Rank, str], set[str]] = {}
        """Waiting device of a rank → who had a turn since it began to wait for its next."""

    @rule(device=st.sampled_from(DEVICES), rank=st.sampled_from(RANKS), times=st.integers(1, 20))
    def come(self, device: str, rank: Rank, times: int) -> None:
        for _ in range(times):
            waiter = Waiting(device, rank)
            self.waiting.append(waiter)
            self.turns.add(waiter, device, rank)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.turns.remove(waiter, waiter.device, waiter.rank)
        self.turns.remove(waiter, waiter.device, waiter.rank)  # gone already: nothing happens
        self.forget_gone()

    @rule(device=st.sampled_from(DEVICES))
    def turn_silent(self, device: str) -> None:
        drained = self.turns.drain(device)
        assert sorted(map(id, drained)) == sorted(id(w) for w in self.waiting if w.device == device)
        self.waiting = [w for w in self.waiting if w.device != device]
        self.forget_gone()

    def forget_gone(self) -> None:
        here = {(w.rank, w.device) for w in self.waiting}
        self.overtaken = {key: by for key, by in self.overtaken.items() if key in here}

    @rule(times=st.integers(1, 40))
    def serve(self, times: int) -> None:
        for _ in range(times):
            before = {w.rank for w in self.waiting}
            taken = self.turns.take()
            if taken is None:
                assert not self.waiting  # nobody is forgotten
                return
            assert taken in self.waiting  # nobody is served twice, or after leaving
            self.waiting.remove(taken)
            higher = [rank for rank in before if RANKS.index(rank) < RANKS.index(taken.rank)]
            if higher:  # only patience puts a lower rank first
                assert self.passed[taken.rank] >= PATIENCE[taken.rank]
            for rank in RANKS:
                if rank == taken.rank or rank not in before:
                    self.passed[rank] = 0
                elif RANKS.index(rank) > RANKS.index(taken.rank):
                    self.passed[rank] += 1
                # both lower ranks may lose their patience together: then one waits for the other
                assert self.passed[rank] <= PATIENCE[rank] + 2
            self.check_fair(taken)

    def check_fair(self, taken: Waiting) -> None:
        """Of a rank, no device has a second turn while another waits for its first; and its own come in order."""
        self.overtaken.pop((taken.rank, taken.device), None)
        for waiter in self.waiting:
            if waiter.rank != taken.rank:
                continue
            if waiter.device == taken.device:
                assert waiter.came > taken.came
            else:
                self.overtaken.setdefault((waiter.rank, waiter.device), set())
        for (rank, device), overtakers in list(self.overtaken.items()):
            if not any((w.rank, w.device) == (rank, device) for w in self.waiting):
                del self.overtaken[rank, device]
            elif rank == taken.rank:
                assert taken.device not in overtakers
                overtakers.add(taken.device)

    @invariant()
    def knows_who_waits(self) -> None:
        assert bool(self.turns) == bool(self.waiting)
        for rank in RANKS:
            assert self.turns.waits(rank) == any(w.rank == rank for w in self.waiting)


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def order(*waiting: tuple[str, Rank]) -> list[tuple[str, Rank]]:
    turns: Turns[tuple[str, Rank]] = Turns()
    for device, rank in waiting:
        turns.add((device, rank), device, rank)
    out = []
    while (taken := turns.take()) is not None:
        out.append(taken)
    return out


def test_writes_go_before_reads_and_reads_before_probes() -> None:
    assert order(("a", "probe"), ("b", "read"), ("c", "write")) == [("c", "write"), ("b", "read"), ("a", "probe")]


def test_a_device_with_much_to_read_does_not_keep_the_others_waiting() -> None:
    greedy: list[tuple[str, Rank]] = [("a", "read")] * 3
    assert [d for d, _ in order(*greedy, ("b", "read"), ("c", "read"))] == ["a", "b", "c", "a", "a"]


def test_endless_writes_let_a_read_in_and_endless_reads_a_probe() -> None:
    for rank, others in (("read", "write"), ("probe", "read"), ("probe", "write")):
        turns: Turns[str] = Turns()
        turns.add("patient", "a", rank)  # type: ignore[arg-type]  # all of them are ranks
        served = 0
        while True:
            turns.add("other", "b", others)  # type: ignore[arg-type]
            served += 1
            if turns.take() == "patient":
                break
        assert served == PATIENCE[rank] + 1  # type: ignore[index]


def test_a_silent_device_is_tried_less_and_less_often_until_it_answers() -> None:
    silences, now = Silences(), 100.0
    pauses = []
    for _ in range(8):
        silence = silences.missed("a", now)
        pauses.append(silence.until - now)
        now = silence.until
    assert 0.8 <= pauses[0] <= 1.0
    assert 1.6 <= pauses[1] <= 2.0
    assert all(24 <= p <= 30 for p in pauses[-2:])
    assert silences.answered("a", 0.01) is silence
    assert silences.of("a") is None
    assert silences.missed("a", now).until - now <= 1.0


def test_the_grace_of_a_probe_follows_the_slowest_reply_lately() -> None:
    silences = Silences()
    assert silences.grace_s("dead") == MIN_GRACE_S
    silences.answered("b", 0.03)
    assert silences.grace_s("dead") == 0.12
    for _ in range(500):
        silences.answered("b", 0.001)
    assert silences.grace_s("dead") == MIN_GRACE_S
    for _ in range(PATIENT_EVERY + 1):
        silences.missed("dead", 0.0, given_up=True)
    assert silences.grace_s("dead") == MAX_GRACE_S
    silences.answered("slow", 2.0)
    assert silences.grace_s("slow") == 3.0  # known to need it


def test_who_never_answered_gets_all_the_time_it_wants_now_and_then() -> None:
    """It may be slower than the grace, and would otherwise never be heard on a line that is always busy."""
    silences = Silences()
    silences.answered("seen", 0.01)
    patient = {"never": 0, "seen": 0}
    for _ in range(3 * PATIENT_EVERY):
        for device in patient:
            silences.missed(device, 0.0, given_up=True)
            patient[device] += silences.grace_s(device) is None
    assert patient == {"never": 3, "seen": 0}  # of the other it is known how long it takes
