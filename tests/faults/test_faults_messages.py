"""Messages are cut in the middle, lost, doubled, swapped, replayed and forged by somebody who sees and holds everything
but the two ends.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.harness import wait_for
from tests.faults.rogue import CLOSE, CONTINUATION, PING, frame
from tests.faults.wiretap import Fate, Seen, Wiretap, wiretap
from tests.faults.world import NODE, WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=11, addresses=20) as world:
        world.note_memory()
        yield world


@pytest.fixture(scope="module")
def path(world: World) -> Iterator[Wiretap]:
    target = world.hub.target
    with wiretap(world.thread, target, world.plan.certificates, NODE) as tap:
        world.hub.target = ("127.0.0.1", tap.port)
        world.hub.cut()
        tap.until(lambda: tap.seen, within_s=WITHIN_S, what="the edge core comes this way")
        yield tap
        world.hub.target = target
        world.hub.cut()


@pytest.fixture
def tap(path: Wiretap, well: World) -> Iterator[Wiretap]:
    path.seen.clear()
    path.happened.clear()
    yield path
    path.judge = lambda _: "pass"


def once(tap: Wiretap, fate: Fate, which: Callable[[Seen], bool]) -> None:
    """Let this happen to the first of such messages."""
    tap.judge = lambda seen: fate if not tap.happened and which(seen) else "pass"


def is_acknowledgement(tap: Wiretap, device: str) -> Callable[[Seen], bool]:
    """Whether a message is the edge core's acknowledgement of an object that the cloud sent it."""

    def judged(seen: Seen) -> bool:
        if seen.direction != "up" or seen.operation != "response":
            return False
        answered = (s for s in tap.seen if s.direction == "down" and s.header["msg_id"] == seen.answers)
        return any(s.resource.endswith(f"/device/{device}") for s in answered)

    return judged


def is_report(seen: Seen) -> bool:
    return seen.direction == "up" and seen.resource.endswith("/twin/edge_updated")


@pytest.mark.parametrize("fate", ("cut before", "cut within", "cut after", "drop", "twice"))
def test_an_acknowledgement_of_the_edge(well: World, tap: Wiretap, fate: Fate) -> None:
    unit = 1
    acknowledges = is_acknowledgement(tap, well.fleet.name(unit))
    once(tap, fate, acknowledges)
    well.wish(unit, random.Random(fate).randrange(60_000))
    tap.until(lambda: tap.happened, within_s=WITHIN_S, what="the object was acknowledged")
    assert tap.happened[0][0] == fate
    again = len(tap.seen)
    if fate == "drop":
        tap.until(
            lambda: any(acknowledges(seen) for seen in list(tap.seen)[again:]), within_s=WITHIN_S,
            what="the object came and was acknowledged again",
        )  # fmt: skip
    elif fate.startswith("cut"):
        tap.until(
            lambda: any(seen.resource == "membership/detail" for seen in list(tap.seen)[again:]), within_s=WITHIN_S,
            what="over a new connection the edge says what it has",
        )  # fmt: skip
    well.all_right()
    wait_for(lambda: well.count("in_flight") == 0, within_s=WITHIN_S, what="nothing waits for an acknowledgement")


@pytest.mark.parametrize("fate", ("cut before", "cut within", "cut after", "drop", "twice"))
def test_an_acknowledgement_of_the_cloud(well: World, tap: Wiretap, fate: Fate) -> None:
    """Of a report: it is the API server's word that it has the value."""

    def acknowledges(seen: Seen) -> bool:
        return seen.direction == "down" and any(
            is_report(s) and s.header["msg_id"] == seen.answers for s in list(tap.seen)
        )

    once(tap, fate, acknowledges)
    well.turn_all(len(fate))
    tap.until(lambda: tap.happened, within_s=WITHIN_S, what="a report was confirmed")
    if fate in ("cut before", "cut within", "drop"):
        lost = tap.happened[0][1]
        devices = [s.resource for s in tap.seen if s.header["msg_id"] == lost.answers]
        again = len(tap.seen)
        tap.until(
            lambda: any(is_report(s) and s.resource in devices for s in list(tap.seen)[again:]), within_s=WITHIN_S,
            what="what was not confirmed is reported again",
        )  # fmt: skip
    well.all_right()


def test_a_tenth_of_all_messages_lost_and_others_doubled_and_swapped(well: World, tap: Wiretap) -> None:
    rng = random.Random(12)
    fates: list[Fate] = ["drop", "twice", "swap", *["pass"] * 7]  # type: ignore[list-item]  # fates, all of them
    tap.judge = lambda _: rng.choice(fates)
    with well.changing(seed=12):
        time.sleep(10)
    assert {fate for fate, _ in tap.happened} == {"drop", "twice", "swap"}
    tap.judge = lambda _: "pass"
    well.all_right()


def test_a_cut_after_every_tenth_message_or_so(well: World, tap: Wiretap) -> None:
    rng = random.Random(13)
    cuts: list[Fate] = ["cut before", "cut within", "cut after"]
    tap.judge = lambda _: rng.choice(cuts) if rng.random() < 0.1 else "pass"
    with well.changing(seed=13):
        wait_for(lambda: len(tap.happened) >= 10, within_s=90, what="ten cuts")
    tap.judge = lambda _: "pass"
    well.all_right()


def test_replayed_reports_and_objects_change_nothing(well: World, tap: Wiretap) -> None:
    well.turn_all(20)
    well.wish_all(2000)
    well.all_right()
    reports = [seen for seen in tap.seen if is_report(seen)]
    acknowledgements = [s for s in tap.seen if s.direction == "up" and s.operation == "response"]
    objects = [s for s in tap.seen if s.direction == "down" and "/device/" in s.resource]
    assert reports
    assert acknowledgements
    assert objects
    well.turn_all(21)
    well.wish_all(2100)
    well.all_right()
    for seen in [*reports, *acknowledgements, *objects]:
        tap.say(seen.direction, seen.text)
    time.sleep(2)
    assert well.wrong() == []
    well.hub.cut()
    time.sleep(0.5)
    well.all_right()


FOREIGN = "foreign"


@pytest.fixture(scope="module")
def foreign(world: World) -> Iterator[None]:
    """A device of another node."""
    device = json.loads(world.kubectl("get", "device", world.fleet.name(1), "-o", "json"))
    metadata = {"name": FOREIGN, "namespace": "default"}
    spec = {**device["spec"], "nodeName": "edge-2"}
    manifest = {"apiVersion": device["apiVersion"], "kind": "Device", "metadata": metadata, "spec": spec}
    world.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    wait_for(lambda: foreign_status(world), within_s=WITHIN_S, what="its status is there")
    yield
    world.kubectl("delete", "device", FOREIGN)


def foreign_status(world: World) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(world.kubectl("get", "devicestatus", FOREIGN, "-o", "json")).get("status", {})
    return {key: status.get(key) for key in ("twins", "state")}


def forged(world: World, tap: Wiretap) -> list[dict[str, Any]]:
    """What a node's own session may be made to say that is not the node's to say."""
    report = next(json.loads(seen.text) for seen in tap.seen if is_report(seen))
    own = report["route"]["resource"]
    name = next(n for n in map(world.fleet.name, world.fleet.wanted) if f"/{n}/" in own)
    messages: list[dict[str, Any]] = []

    def say(content: Any = report["content"], **route: str) -> None:
        header = {"msg_id": f"forged-{len(messages)}", "timestamp": time.time_ns() // 1_000_000}
        messages.append({"header": header, "route": {**report["route"], **route}, "content": content})

    say(resource=own.replace(name, FOREIGN))
    say(resource=f"node/edge-2/{own.replace(name, FOREIGN)}")
    say(resource=f"node/{NODE}/../edge-2/{own.replace(name, FOREIGN)}")
    say(resource=own.replace(f"/{name}/", f"/{name}/../{FOREIGN}/"))
    say(resource=own.replace(name, f"{FOREIGN}\r\nX-Evil: 1"))
    say(resource=own + "/" * 2_000)
    say(source="devicecontroller", resource=own.replace(name, FOREIGN))
    say(source="edgecontroller", operation="delete", resource="default/node/edge-2")
    say({"metadata": {"name": "edge-2"}}, source="edged", operation="update", resource="default/nodestatus/edge-2")
    say("{}", source="edged", operation="patch", resource="default/nodepatch/edge-2")
    say(None, source="metamanager", operation="query", resource="kube-system/secret/top")
    say(None, source="metamanager", operation="query", resource="kubeedge/secret/casecret")
    say(None, source="metamanager", operation="delete", resource=f"default/device/{FOREIGN}")
    say({"spec": {}}, source="metamanager", operation="update", resource=f"default/device/{name}")
    say(None, operation="conquer")
    say(None, operation="response", group="resource", resource="")
    messages[-1]["header"]["parent_msg_id"] = "never-sent"
    return messages


HARMLESS = 1
"""An acknowledgement of nothing is none."""


def refusals(world: World) -> float:
    """What cloud core has refused or dropped so far, wherever it counts that."""
    counts = ("refused_total", "messages_dropped_total", "device_reports_refused_total")
    return sum(world.count(name) for name in counts)


def test_forged_messages_reach_nothing(well: World, tap: Wiretap, foreign: None) -> None:
    well.turn_all(30)
    well.all_right()
    before, since = foreign_status(well), len(tap.seen)
    refused = refusals(well)
    messages = forged(well, tap)
    for message in messages:
        tap.say("up", json.dumps(message).encode())
    wait_for(
        lambda: refusals(well) >= refused + len(messages) - HARMLESS,
        within_s=WITHIN_S, what="they are refused and counted",
    )  # fmt: skip
    well.turn_all(31)
    well.all_right()
    assert foreign_status(well) == before
    answers = [s for s in list(tap.seen)[since:] if s.answers.startswith("forged-")]
    assert not [s for s in answers if b"cakeydata" in s.text]
    assert json.loads(well.kubectl("get", "device", well.fleet.name(1), "-o", "json"))["spec"]["properties"]


def told(content: bytes, **route: str) -> bytes:
    """A message as the cloud could send it."""
    route = {"source": "devicecontroller", "group": "resource", "operation": "update", **route}
    header = b'{"header":{"msg_id":"told","timestamp":1,"resourceversion":"99999999"},"route":'
    return header + json.dumps(route).encode() + b',"content":' + content + b"}\n"


RUBBISH = {
    "no JSON": b"hello",
    "half of a JSON": told(b'""', resource="default/device/x")[:-20],
    "not UTF-8": b'{"header":{"msg_id":"\xff\xfe"}}',
    "types that are not": b'{"header":7,"route":[],"content":1}',
    "an object of no kind": told(b'{"metadata":7}', resource="default/device/x"),
    "a device that is a list": told(b"[]", resource="default/device/x"),
    "deep nesting": told(b"[" * 100_000 + b"]" * 100_000, resource="default/device/x"),
    "a device without a name": told(b'{"kind":"Device","metadata":{}}', resource="default/device/x"),
    "a path that climbs": told(b'{"metadata":{"name":"x"}}', resource="default/device/../../etc/passwd"),
    "a path without end": told(b"{}", resource="a/" * 100_000),
    "an unknown operation": told(b"{}", operation="conquer", resource="default/device/x"),
    "a delete of nothing": told(b"null", operation="delete", resource="default/device/nobody"),
    "membership of nobody": told(b"7", source="edgemgr", group="twin", resource="membership"),
    "an answer to nothing": told(b'"OK"', operation="response", resource="node/edge-1/membership"),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_rubbish_from_the_cloud(well: World, tap: Wiretap, what: str) -> None:
    connections = tap.connections
    for _ in range(20):
        tap.say("down", RUBBISH[what])
    well.turn_all(len(what))
    well.wish_all(4000 + len(what))
    well.all_right()
    assert tap.connections == connections, "the connection goes on"


BROKEN = {
    "a reserved opcode": frame(b"x", opcode=3, masked=False),
    "a continuation of nothing": frame(b"x", opcode=CONTINUATION, masked=False),
    "more than the cap": frame(b"x", length=33 * 1024 * 1024, masked=False),
    "a negative length": frame(b"x", length=(1 << 64) - 1, masked=False),
    "a length that is not the shortest": bytes([0x81, 127]) + (5).to_bytes(8) + b"hello",
    "a control frame that is too long": frame(b"x" * 126, opcode=PING, masked=False),
    "a close frame of one byte": frame(b"x", opcode=CLOSE, masked=False),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_frames_from_the_cloud(well: World, tap: Wiretap, what: str) -> None:
    connections = tap.connections
    tap.put("down", BROKEN[what])
    wait_for(lambda: tap.connections > connections, within_s=WITHIN_S, what="the edge core dials again")
    well.turn_all(len(what))
    well.wish_all(5000 + len(what))
    well.all_right()
