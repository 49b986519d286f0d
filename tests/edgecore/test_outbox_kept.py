"""The stored outbox against a model: order, newest-wins, bounds, and totals that are always right."""

import sqlite3
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgecore.store.migrations import migrate
from edgecore.store.outbox import OutboxSize, next_kept, outbox_size, put_kept, recount, remove_kept

MOST, MOST_BYTES = 6, 200


class OutboxMachine(RuleBasedStateMachine):
    """What the table holds, by number, and which of it a sender has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.db)
        self.model: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self.read = 0
        self.sent: list[int] = []

    def teardown(self) -> None:
        self.db.close()

    @rule(key=st.sampled_from(["", "", "a", "b"]), body=st.binary(min_size=1, max_size=90))
    def put(self, key: str, body: bytes) -> None:
        put = put_kept(self.db, body, key=key, used=self.read, max_messages=MOST, max_bytes=MOST_BYTES)
        (number,) = self.db.execute("SELECT max(number) FROM outbox").fetchone()
        assert number > max(self.model, default=0)
        for before in [n for n, (k, _) in self.model.items() if key and k == key]:
            del self.model[before]
        assert number > self.read, "a number that a sender remembers is never used again"
        self.model[number] = (key, body)
        dropped = 0
        while len(self.model) > MOST or sum(len(b) for _, b in self.model.values()) > MOST_BYTES:
            self.model.popitem(last=False)
            dropped += 1
        assert put.dropped == dropped
        assert put.size == outbox_size(self.db)

    @rule(limit=st.integers(1, 4), max_bytes=st.integers(0, 150))
    def send(self, limit: int, max_bytes: int) -> None:
        after = self.sent[-1] if self.sent else 0
        expected: list[int] = []
        left = max_bytes
        for number, (_, body) in self.model.items():
            if number > after and len(expected) < limit:
                left -= len(body)
                if expected and left < 0:
                    break
                expected.append(number)
        rows = next_kept(self.db, after=after, limit=limit, max_bytes=max_bytes)
        assert [row.number for row in rows] == expected
        assert all(self.model[row.number][1] == row.body for row in rows)
        self.sent += expected
        self.read = max([self.read, *expected])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        """Of something sent, still there or not, once or again: nothing else goes."""
        numbers = data.draw(st.lists(st.sampled_from(self.sent), max_size=3))
        size = remove_kept(self.db, numbers)
        for number in numbers:
            self.model.pop(number, None)
        assert size == outbox_size(self.db)

    @rule()
    def cut(self) -> None:
        """The next connection begins at the first that has not arrived."""
        self.sent.clear()

    @rule()
    def roll_back(self) -> None:
        self.db.execute("BEGIN")
        put_kept(self.db, b"never was", max_messages=2, max_bytes=30)
        self.db.execute("ROLLBACK")

    @rule()
    def lose_the_total(self) -> None:
        self.db.execute("DELETE FROM outbox_size")
        assert outbox_size(self.db) == recount(self.db)

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        rows = self.db.execute("SELECT number, key, body FROM outbox ORDER BY number").fetchall()
        assert rows == [(number, *kept) for number, kept in self.model.items()]
        assert outbox_size(self.db) == OutboxSize(len(rows), sum(len(body) for _, _, body in rows))
        assert len(rows) <= MOST


TestOutbox = pytest.mark.filterwarnings("error")(OutboxMachine.TestCase)
TestOutbox.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
