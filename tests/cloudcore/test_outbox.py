"""What waits for a node: order, newest wins, one in flight per object, again until acknowledged."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudcore.cloudhub.outbox import Outbox
from cloudedge import Message, new_message

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
        assert self.outbox.acknowledge(message.id)
        assert not self.outbox.acknowledge(message.id)

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
                self.outbox.acknowledge(message.id)
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
    assert outbox.next(6.0) is None
    assert outbox.next(10.0) is second
    assert not outbox.acknowledge(first.id)
    assert outbox.acknowledge(second.id)
    assert outbox.wait_s(10.0) is None


def test_model_stays_before_the_device_that_was_put_again() -> None:
    outbox = Outbox()
    outbox.put_object(about("default/device/a"))
    outbox.put_object(about("default/devicemodel/m"))
    outbox.put_object(about("default/device/a"))
    sent = [outbox.next(0.0), outbox.next(0.0)]
    assert [m.route.resource for m in sent if m] == ["default/devicemodel/m", "default/device/a"]
