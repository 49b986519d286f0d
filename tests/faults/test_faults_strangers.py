"""Who keeps to no rule, at the hub's port: broken frames, messages out of all bounds, wrong certificates, and another
edge core that thinks it is this node. The node itself must not notice.
"""

import contextlib
import json
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml

from cloudedge.certificates import create_ca, mint, save, sign_node
from tests.e2e.harness import wait_for
from tests.faults.rogue import BINARY, CLOSE, CONTINUATION, PING, frame, rogue, upgrade
from tests.faults.world import NODE, WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

OTHER = "edge-9"
CAP = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=21) as world:
        mint(world.plan.certificates, nodes=[OTHER], names=["127.0.0.1"])
        world.restart("cloudcore")  # with the server certificate that `mint` has just made anew
        world.all_right()
        for _ in range(3):  # what the buffers for the largest message cost stays
            send(world, oversized_in_fragments())
        world.all_right()
        world.note_memory()
        yield world


def envelope(content: bytes = b'""', **route: str) -> bytes:
    route = {
        "source": "twin",
        "group": "resource",
        "operation": "update",
        "resource": "device/x/twin/edge_updated",
        **route,
    }
    return (
        b'{"header":{"msg_id":"m","timestamp":1},"route":'
        + json.dumps(route).encode()
        + b',"content":'
        + content
        + b"}\n"
    )


def oversized_in_fragments() -> list[bytes]:
    piece = b"x" * (1024 * 1024)
    rest = [frame(piece, opcode=CONTINUATION, fin=False) for _ in range(CAP // len(piece) + 1)]
    return [frame(b'{"header":{"msg_id":"', fin=False), *rest]


KEPT: dict[str, list[bytes]] = {
    "no JSON": [frame(b"hello")],
    "half of a JSON": [frame(envelope()[:-20])],
    "not UTF-8": [frame(b'{"header":{"msg_id":"\xff\xfe"}}')],
    "an array": [frame(b"[]")],
    "null": [frame(b"null")],
    "empty": [frame(b"")],
    "types that are not": [frame(b'{"header":7,"route":[],"content":1}'), frame(b'{"header":{"msg_id":{}},"route":1}')],
    "deep nesting": [frame(envelope(b"[" * 200_000 + b"]" * 200_000))],
    "deep nesting of objects": [frame(envelope(b'{"a":' * 100_000 + b"1" + b"}" * 100_000))],
    "a number without end": [frame(envelope(b"1" * 1_000_000))],
    "unknown operation": [frame(envelope(operation="x" * 100_000))],
    "a resource without end": [frame(envelope(resource="device/" * 100_000))],
    "surrogates": [frame(envelope(b'"\\ud800"', resource="device/\\ud800/twin/edge_updated"))],
    "reserved bits": [bytes([0xF1]) + frame(b"x")[1:]],
    "binary": [frame(envelope(), opcode=BINARY)],
    "a flood of pings": [frame(b"ping", opcode=PING) * 5_000],
    "a flood of rubbish": [frame(b"rubbish") * 5_000],
    "an empty message in a thousand fragments": [
        frame(b"", fin=False), *[frame(b"", opcode=CONTINUATION, fin=False)] * 1000, frame(b"", opcode=CONTINUATION)
    ],
}  # fmt: skip
"""After these the connection goes on."""
CLOSED: dict[str, list[bytes]] = {
    "more than the cap, in fragments": oversized_in_fragments(),
    "more than the cap, in one frame": [frame(b"x", length=CAP + 1)],
    "the largest length there is": [frame(b"x", length=(1 << 63) - 1)],
    "a negative length": [frame(b"x", length=(1 << 64) - 1)],
    "a continuation of nothing": [frame(b"x", opcode=CONTINUATION)],
    "a new message within another": [frame(b"x", fin=False), frame(b"y")],
    "an opcode that is reserved": [frame(b"x", opcode=3)],
    "a control frame that is too long": [frame(b"x" * 126, opcode=PING)],
    "a close frame of one byte": [frame(b"x", opcode=CLOSE)],
    "goodbye": [frame(b"\x03\xe8", opcode=CLOSE)],
}
"""After these it is closed."""


def send(world: World, parts: list[bytes], *, closes: bool = True) -> None:
    with rogue(world.hub_port, world.plan.certificates, OTHER) as client:
        client.say(upgrade(OTHER))
        assert client.answer().startswith(b"HTTP/1.1 101")
        for part in parts:
            client.say(part)
        if closes:
            client.until_closed(10)
        else:
            client.say(frame(b"", opcode=CLOSE))
            client.until_closed(10)


@pytest.mark.parametrize("what", KEPT)
def test_bad_messages_are_dropped(well: World, what: str) -> None:
    well.turn_all(len(what))
    send(well, KEPT[what], closes=False)


@pytest.mark.parametrize("what", CLOSED)
def test_bad_frames_end_the_connection(well: World, what: str) -> None:
    well.turn_all(len(what))
    ended = well.count("sessions_ended_total")
    send(well, CLOSED[what])
    wait_for(lambda: well.count("sessions_ended_total") > ended, within_s=WITHIN_S, what="the session has ended")


def test_random_bytes(well: World) -> None:
    rng = random.Random(22)
    good = [frame(envelope()), frame(envelope()), frame(b"x", opcode=PING)]
    for _ in range(40):
        parts = [bytearray(rng.choice(good)) for _ in range(rng.randrange(1, 4))]
        for part in parts:
            for _ in range(rng.randrange(1, 6)):
                part[rng.randrange(len(part))] = rng.randrange(256)
        with rogue(well.hub_port, well.plan.certificates, OTHER) as client, contextlib.suppress(TimeoutError):
            client.say(upgrade(OTHER))
            client.answer()
            for part in parts:
                client.say(bytes(part))
            client.say(frame(b"", opcode=CLOSE))
            client.until_closed(0.1)


@pytest.mark.parametrize(
    "request_",
    (
        b"\x16\x03\x01 not HTTP\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        upgrade(OTHER, use=""),
        upgrade(OTHER, use="file"),
        upgrade("../" + OTHER),
        upgrade(""),
        upgrade(OTHER, more="Origin: https://elsewhere\r\n"),
        upgrade(OTHER, more=f"node_id: {NODE}\r\n"),
        upgrade(OTHER, more="X: " + "y" * 200_000 + "\r\n"),
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        upgrade(NODE),
    ),
    ids=(
        "not HTTP", "no upgrade", "no use", "another use", "a path", "no name", "another origin", "two names",
        "a long header", "many headers", "another node's name",
    ),
)  # fmt: skip
def test_upgrades_that_are_refused(well: World, request_: bytes) -> None:
    takeovers = well.count("takeovers_total")
    with rogue(well.hub_port, well.plan.certificates, OTHER) as client:
        client.say(request_)
        client.until_closed(15)
    well.turn_all(len(request_) % 100)
    assert well.count("takeovers_total") == takeovers
    assert well.count("nodes") == 1


@pytest.mark.parametrize("whose", ("nobody's", "of another CA", "the server's"))
def test_certificates_that_are_refused(well: World, whose: str) -> None:
    name, certificates = "", well.plan.certificates
    if whose == "of another CA":
        save(sign_node(create_ca(), NODE), certificates, name := "other-ca")
    elif whose == "the server's":
        name = "server"
    heard = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError), rogue(well.hub_port, certificates, name) as client:
        client.say(upgrade(NODE))
        heard = client.until_closed(10)
    assert b" 101 " not in heard or b"certificate" in heard
    well.turn_all(23)
    assert well.count("nodes") == 1


def test_who_says_nothing_or_little_at_the_hub_is_sent_away(well: World) -> None:
    """Twice: what so many at once cost the first time is not added to the second time."""
    for round_ in range(2):
        if round_:
            well.note_memory()
        with contextlib.ExitStack() as around:
            for number in range(200):
                one = around.enter_context(socket.create_connection(("127.0.0.1", well.hub_port)))
                if number % 2:
                    one.sendall(b"\x16\x03\x01\x02\x00\x01")  # a greeting that never ends
            well.turn_all(24 + round_)
            well.all_right()
            wait_for(lambda: well.count("upgrading") == 0, within_s=30, what="they are sent away")


def test_two_edge_cores_with_one_name(well: World) -> None:
    """Each newest connection takes the place of the other; both come back ever more slowly. Nothing is lost by it, and
    when one of them ends all is as before.
    """
    with second_edge(well):
        takeovers, began = well.count("takeovers_total"), time.monotonic()
        wait_for(lambda: well.count("takeovers_total") > takeovers + 3, within_s=60, what="they fight for the place")
        with well.changing(seed=25):
            time.sleep(10)
        rate = (well.count("takeovers_total") - takeovers) / (time.monotonic() - began)
        assert rate < 3, f"{rate:.1f} takeovers a second"
        wait_for(lambda: not _wrong_values(well), within_s=WITHIN_S, what="values arrive all the same")
        assert well.count("nodes") <= 1
    log = well.log("cloudcore")
    assert f"node {NODE} connected, taking over from an older connection" in log
    assert "do two machines have this name?" in log


def _wrong_values(world: World) -> list[str]:
    return [wrong for wrong in world.wrong() if " shows " in wrong and "'good'" in wrong]


@contextlib.contextmanager
def second_edge(world: World) -> Iterator[None]:
    """With the node's name and certificate, and no mapper."""
    directory = world.plan.directory / "second"
    directory.mkdir(mode=0o700)
    config = yaml.safe_load((world.plan.directory / "edgecore.yaml").read_text())
    config["database"]["dataSource"] = str(directory / "edgecore.db")
    config["modules"]["deviceTwin"]["dmiSockPath"] = str(directory)
    file = directory / "edgecore.yaml"
    file.write_text(yaml.safe_dump(config))
    with (directory / "edgecore.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "edgecore", "--config", str(file)], stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (directory / "edgecore.log").read_text()
        assert "Traceback" not in (directory / "edgecore.log").read_text()
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
