"""The edge in a network namespace of its own, on a link that goes down without a word and loses, doubles and reorders
packets.
"""

import os
import time
from collections.abc import Iterator

import pytest

from cloudedge.certificates import mint
from tests.faults.network import HERE, Link, LinkFaults, NoNamespaces, namespace_link
from tests.faults.world import WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=41) as world:
        yield world


@pytest.fixture(scope="module")
def link(world: World) -> Iterator[Link]:
    """Edge core is at the other end of it; the mapper is with the device, and calls it over its socket as ever."""
    if os.geteuid():
        pytest.skip("needs root, for a network namespace")
    try:
        with namespace_link(world.thread, seed=41) as link:
            _serve_at(world, HERE)
            world.kill("edgecore")
            world.prefix["edgecore"] = link.command
            hub = {"websocket": {"server": f"{HERE}:{world.hub_port}", "readDeadline": 3, "handshakeTimeout": 5}}
            hub["httpServer"] = f"https://{HERE}:{world.join_port}"  # type: ignore[assignment]  # YAML
            world.reconfigure("edgecore.yaml", {"modules": {"edgeHub": hub}})
            world.start("edgecore")
            world.all_right()
            world.note_memory()
            yield link
            world.kill("edgecore")
            del world.prefix["edgecore"]
    except NoNamespaces as why:
        pytest.skip(str(why))


def _serve_at(world: World, host: str) -> None:
    mint(world.plan.certificates, nodes=[], names=["127.0.0.1", host])
    hub = {"websocket": {"address": "0.0.0.0"}, "advertiseAddress": ["127.0.0.1", host]}
    world.reconfigure("cloudcore.yaml", {"modules": {"cloudHub": hub}})
    world.restart("cloudcore")


def test_the_link_goes_down_and_comes_back(link: Link, well: World) -> None:
    """For less than anybody notices, and for longer than everybody's patience."""
    with well.changing(seed=42):
        for away_s in (0.5, 2.0, 18.0):
            link.down = True
            time.sleep(away_s)
            link.down = False
            time.sleep(1)
    assert link.lost > 0
    well.all_right()


def test_the_link_flaps(link: Link, well: World) -> None:
    with well.changing(seed=43):
        for number in range(20):
            link.down = number % 2 == 0
            time.sleep(0.4)
        link.down = False
    well.all_right()


@pytest.mark.parametrize(
    "faults",
    (
        LinkFaults(lost=0.1),
        LinkFaults(lost=0.25, delay_s=0.02),
        LinkFaults(late=0.3, doubled=0.2),
        LinkFaults(delay_s=0.3),
    ),
    ids=("a tenth is lost", "a quarter is lost", "late and doubled", "slow"),
)
def test_packets_are_spoilt(link: Link, well: World, faults: LinkFaults) -> None:
    link.faults = faults
    carried = link.carried
    try:
        with well.changing(seed=44):
            time.sleep(4)
        well.all_right(60)
        well.kill("edgecore")
        well.start("edgecore")
        well.turn_all(45)
        well.all_right(60)
    finally:
        link.faults = LinkFaults()
    assert link.carried > carried


def test_the_edge_goes_away_for_good_and_comes_back(link: Link, well: World) -> None:
    """No goodbye ever reaches the cloud: the node's silence has to tell it, and its devices are unknown until then."""
    link.down = True
    well.kill("edgecore")
    wait_unknown(well)
    link.down = False
    well.turn_all(46)
    well.wish_all(4600)
    well.start("edgecore")


def wait_unknown(world: World) -> None:
    names = {f"{world.fleet.name(unit)} is unknown" for unit in world.fleet.wanted}
    end = time.monotonic() + WITHIN_S + 30
    while not names <= set(world.wrong()):
        assert time.monotonic() < end, world.wrong()
        time.sleep(0.2)
