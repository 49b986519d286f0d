"""Objects that follow one another under one name: whatever is late or repeated, the node ends with what there is."""

import random
from collections.abc import Callable

import pytest

from cloudcore.cloudhub.outbox import Outbox
from cloudedge import Message, new_message


def message(operation: str, uid: int, version: int) -> Message:
    return new_message(
        source="edgecontroller",
        group="resource",
        operation=operation,
        resource="default/pod/web-0",
        content={"metadata": {"uid": f"u{uid}"}},
        resource_version=str(version) if version else "",
    )


class World:
    """A pod that is made, changed and deleted, and a node that takes what it is sent, by uid."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.outbox = Outbox()
        self.now = 0.0
        self.uid = self.version = 0
        self.there: tuple[int, int] | None = None
        self.ended: list[int] = []
        self.sent: list[Message] = []
        self.node: tuple[int, int] | None = None

    def change(self) -> None:
        self.version += 1
        self.uid += self.there is None
        self.there = (self.uid, self.version)
        self.outbox.put_object(message("update", *self.there))

    def delete(self) -> None:
        if self.there is not None:
            self.there = None
            self.ended.append(self.uid)
            self.outbox.put_object(message("delete", self.uid, 0))

    def repeat(self) -> None:
        """The node reports a pod that has ended, and is told once more that it has."""
        if self.ended:
            self.outbox.put_object(message("delete", self.random.choice(self.ended), 0))

    def send(self) -> bool:
        found = self.outbox.next(self.now)
        if found is None:
            return False
        self.sent.append(found)
        uid = found.data()["metadata"]["uid"]
        if found.route.operation != "delete":
            self.node = (int(uid[1:]), int(found.header.resourceversion))
        elif self.node is not None and uid == f"u{self.node[0]}":
            self.node = None
        return True

    def acknowledge(self) -> None:
        if self.sent:
            self.outbox.acknowledge(self.sent.pop(self.random.randrange(len(self.sent))).id, self.now)

    def wait(self) -> None:
        self.now += self.random.choice((1.0, 5.0, 10.0))


@pytest.mark.parametrize("repeats", (False, True))
def test_the_node_ends_with_what_there_is(repeats: bool) -> None:
    for seed in range(1000):
        world = World(seed)
        steps: list[Callable[[], object]] = [*[world.change] * 7, *[world.delete] * 4, *[world.send] * 4]
        steps += [world.acknowledge, world.acknowledge, world.wait]
        steps += [world.repeat] * 2 * repeats
        for _ in range(world.random.randint(3, 25)):
            world.random.choice(steps)()
        while len(world.outbox):
            while world.send():
                world.acknowledge()
            while world.sent:
                world.acknowledge()
            world.now += world.outbox.wait_s(world.now) or 0.0
        assert world.node == world.there, seed
        assert world.outbox.held_bytes == 0
