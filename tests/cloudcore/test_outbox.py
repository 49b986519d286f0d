"""What waits for a node: order, newest wins, one in flight per object, again until acknowledged."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudcore.cloudhub.outbox import MAX_BYTES, MAX_PLAIN, RESEND_S, Acknowledged, Outbox
from cloudedge import Message, new_message, reply

RESOURCES = st.sampled_from(["default/device/a", "default/device/b", "default/device/c", "default/devicemodel/m"])


def plain() -> Message:
    return new_message(source="devicecontroller", group="twin", operation="update", resource="membership")


def about(resource: str) -> Message:
    return new_message(source="devicecontroller", group="resource", operation="update", resource=resource)


class Outboxes(RuleBasedStateMachine):
    """A node that acknowledges late, never or twice, against a list of what it must end with."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(window=2, resend_s=5.0)
        self.now = 0.0
        self.wanted: dict[str, str] = {}
        self.has: dict[str, str] = {}
        self.in_flight: dict[str, Message] = {}
        self.plain_put: list[str] = []
        self.plain_got: list[str] = []

    @rule(resource=RESOURCES)
    def put(self, resource: str) -> None:
        message = about(resource)
        self.wanted[resource] = message.id
        self.outbox.put_object(message)

    @rule()
    def post(self) -> None:
        message = plain()
        self.plain_put.append(message.id)
        self.outbox.post(message)

    @rule()
    def send(self) -> None:
        message = self.outbox.next(self.now)
        if message is None:
            return
        if message.route.resource == "membership":
            self.plain_got.append(message.id)
            return
        assert self.plain_got == self.plain_put
        assert message.id == self.wanted[message.route.resource]  # always the newest
        self.in_flight[message.route.resource] = message
        self.has[message.route.resource] = message.id

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        resource = data.draw(st.sampled_from(sorted(self.in_flight)))
        message = self.in_flight.pop(resource)
        assert self.outbox.acknowledge(message.id, self.now)
        assert not self.outbox.acknowledge(message.id, self.now)

    @rule(seconds=st.sampled_from([0.1, 4.9, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def window_is_kept(self) -> None:
        assert len(self.outbox._in_flight) <= 2

    def teardown(self) -> None:
        for _ in range(100):
            message = self.outbox.next(self.now)
            if message is None:
                wait_s = self.outbox.wait_s(self.now)
                if wait_s is None:
                    break
                self.now += wait_s
            elif message.route.resource == "membership":
                self.plain_got.append(message.id)
            else:
                self.has[message.route.resource] = message.id
                self.outbox.acknowledge(message.id, self.now)
        assert self.has == self.wanted
        assert self.plain_got == self.plain_put
        assert len(self.outbox) == 0


TestOutbox = Outboxes.TestCase


def test_same_id_until_something_newer() -> None:
    outbox = Outbox()
    first, second = about("default/device/a"), about("default/device/a")
    outbox.put_object(first)
    assert outbox.next(0.0) is first
    assert outbox.next(1.0) is None
    assert outbox.wait_s(1.0) == 4.0
    assert outbox.next(5.0) is first
    outbox.put_object(second)
    assert outbox.next(10.0) is second
    assert not outbox.acknowledge(first.id, 11.0)
    done = outbox.acknowledge(second.id, 12.0)
    assert done == Acknowledged(second, 2.0)
    assert outbox.wait_s(12.0) is None
    assert (outbox.resent, outbox.superseded, outbox.held_bytes) == (1, 1, 0)


def test_resends_back_off_up_to_a_minute() -> None:
    outbox, now, sent_at = Outbox(), 0.0, [0.0]
    outbox.put_object(message := about("default/device/a"))
    assert outbox.next(now)
    for _ in range(6):
        wait_s = outbox.wait_s(now)
        assert wait_s is not None
        assert outbox.next(now + wait_s - 0.01) is None
        now += wait_s
        assert outbox.next(now) is message
        sent_at.append(now)
    assert [after - before for before, after in pairwise(sent_at)] == [5, 10, 20, 40, 60, 60]


def test_something_newer_does_not_wait_for_the_back_off() -> None:
    outbox = Outbox()
    outbox.put_object(about("default/device/a"))
    for now in (0.0, 5.0, 15.0, 35.0):
        assert outbox.next(now)
    outbox.put_object(newer := about("default/device/a"))
    assert outbox.wait_s(36.0) == 0.0
    assert outbox.next(36.0) is newer
    assert outbox.wait_s(36.0) == RESEND_S


def test_an_answer_that_nobody_waits_for_is_given_up() -> None:
    outbox, now, times = Outbox(), 0.0, 0
    answer = new_message(
        source="edgecontroller", group="resource", operation="response", resource="default/configmap/c", parent="q"
    )
    outbox.put_answer(answer)
    outbox.put_answer(other := reply(answer, content={}))  # of the same path, and not in its way
    assert [outbox.next(0.0), outbox.next(0.0)] == [answer, other]
    assert outbox.acknowledge(other.id, 0.0)
    while (wait_s := outbox.wait_s(now)) is not None:
        now += wait_s
        times += outbox.next(now) is answer
    assert (times, outbox.given_up, len(outbox), outbox.held_bytes) == (4, 1, 0, 0)


def versioned(version: str, uid: str = "u", operation: str = "update") -> Message:
    return new_message(
        source="devicecontroller",
        group="resource",
        operation=operation,
        resource="default/device/a",
        content={"metadata": {"uid": uid, "resourceVersion": version}},
        resource_version=version,
    )


@pytest.mark.parametrize(
    ("waiting", "put", "left"),
    (
        (["9"], versioned("10"), ["10"]),  # numbers, not text
        (["10"], versioned("9"), ["10"]),
        (["10"], versioned("10"), ["10"]),
        (["10"], versioned("", operation="delete"), [""]),
        ([("7", "u", "delete")], versioned("7"), ["7"]),  # as a model that is needed again
        ([("7", "u", "delete")], versioned("6"), ["7"]),
        ([("7", "u", "delete")], versioned("3", uid="v"), ["7", "3"]),  # the deletion first
        ([("7", "u", "delete"), ("8", "v")], versioned("9", uid="v"), ["7", "9"]),
        ([("7", "u", "delete"), ("8", "v"), ("9", "v", "delete")], versioned("11", uid="w"), ["7", "11"]),
        ([("8", "v")], versioned("7", operation="delete"), ["7", "8"]),  # late: its successor waits already
        ([("7", "u", "delete"), ("8", "v")], versioned("7", operation="delete"), ["7", "8"]),
        ([("9", "v", "delete")], versioned("7", operation="delete"), ["7", "9"]),
        (["x"], versioned("y"), ["y"]),
    ),
)
def test_what_waits_for_an_object(waiting: list[Any], put: Message, left: list[str]) -> None:
    outbox = Outbox()
    for entry in waiting:
        outbox.put_object(versioned(*([entry] if isinstance(entry, str) else entry)))
    outbox.put_object(put)
    sent = []
    while message := outbox.next(0.0):
        sent.append(message.header.resourceversion)
        assert outbox.acknowledge(message.id, 0.0)
    assert sent == left
    assert outbox.held_bytes == 0


def test_a_deletion_that_is_repeated_does_not_take_the_successor_with_it() -> None:
    outbox = Outbox()
    outbox.put_object(deletion := versioned("7", operation="delete"))
    assert outbox.next(0.0) is deletion
    outbox.put_object(successor := versioned("8", uid="v"))
    outbox.put_object(versioned("7", operation="delete"))  # an edge core that reports the pod it is just ending
    assert outbox.acknowledge(deletion.id, 0.0)
    assert outbox.next(0.0) is successor
    assert outbox.acknowledge(successor.id, 0.0)
    assert (outbox.next(0.0), outbox.superseded, outbox.held_bytes) == (None, 1, 0)


def test_an_object_in_flight_is_not_overtaken_by_an_older_version() -> None:
    outbox = Outbox()
    outbox.put_object(current := versioned("5"))
    assert outbox.next(0.0) is current
    outbox.put_object(versioned("4"))
    assert outbox.next(60.0) is current
    assert outbox.superseded == 1


def test_more_than_a_node_may_have_waiting() -> None:
    outbox = Outbox()
    big = new_message(source="s", group="resource", operation="update", resource="default/device/a", content="x" * 1000)
    for _ in range(MAX_PLAIN):
        outbox.post(big)
    assert not outbox.overflowing
    outbox.held_bytes += MAX_BYTES
    assert outbox.overflowing


def test_model_stays_before_the_device_that_was_put_again() -> None:
    outbox = Outbox()
    outbox.put_object(about("default/device/a"))
    outbox.put_object(about("default/devicemodel/m"))
    outbox.put_object(about("default/device/a"))
    sent = [outbox.next(0.0), outbox.next(0.0)]
    assert [m.route.resource for m in sent if m] == ["default/devicemodel/m", "default/device/a"]


def test_a_message_that_nobody_acknowledges_is_sent_for_days() -> None:
    outbox, now, sent = Outbox(), 0.0, 0
    outbox.put_object(about("default/device/a"))
    while now < 3 * 86_400:
        while outbox.next(now) is not None:
            sent += 1
        wait_s = outbox.wait_s(now)
        assert wait_s is not None
        now += wait_s
    assert sent > 4000
