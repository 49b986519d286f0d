"""The path between edge core and cloud core is cut, slowed, spoilt and reordered while values change."""

import random
import time
from collections.abc import Iterator

import pytest

from tests.e2e.harness import wait_for
from tests.faults.proxy import CLEAN, Direction, Faults
from tests.faults.world import WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

ADDRESSES = 100
"""After a cut edge core tries the next of its addresses at once, and only then pauses: so a cut takes no 5 s."""
HEARD_S = 3.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    hub = {"websocket": {"readDeadline": HEARD_S, "handshakeTimeout": HEARD_S}}
    edge = {"modules": {"edgeHub": hub}}
    with faulty_world({"edgecore.yaml": edge}, seed=1, addresses=ADDRESSES) as world:
        world.note_memory()
        yield world


def test_1000_cuts_while_values_change(well: World) -> None:
    """What the first quarter cost in memory stays; the rest must not add to it."""
    rng, hub = random.Random(2), well.hub
    first = hub.accepted
    with well.changing(seed=2):
        for number in range(1000):
            if number == 250:
                well.note_memory()
            time.sleep(rng.uniform(0, 0.12))
            hub.cut_one(reset=rng.random() < 0.5)
            hub.until_accepted(first + number + 1, within_s=20)
    assert hub.accepted >= first + 1000
    well.all_right()


@pytest.mark.parametrize("direction", ("up", "down"))
def test_connections_that_break_after_n_bytes(well: World, direction: Direction) -> None:
    """Within TLS's greetings, within the upgrade, within a message: wherever it falls."""
    rng, hub = random.Random(f"n bytes {direction}"), well.hub
    with well.changing(seed=3):
        for _ in range(30):
            faults = Faults(cut_after=rng.randrange(8_000))
            cuts = hub.cuts
            hub.set(**{direction: faults}, existing=False)  # type: ignore[arg-type]  # up or down
            hub.cut_one()
            wait_for(lambda c=cuts: hub.cuts > c + 1, within_s=WITHIN_S, what=f"{faults} has happened")  # type: ignore[misc]
        hub.heal()
        hub.cut()


@pytest.mark.parametrize("direction", ("up", "down"))
def test_a_flipped_bit_is_noticed_and_changes_nothing(well: World, direction: Direction) -> None:
    rng, hub = random.Random(f"bits {direction}"), well.hub
    with well.changing(seed=4):
        for _ in range(15):
            accepted = hub.accepted
            hub.set(**{direction: Faults(flip_after=rng.randrange(1_500))}, new=False)  # type: ignore[arg-type]
            hub.until_accepted(accepted + 1, within_s=WITHIN_S)
            time.sleep(rng.uniform(0.1, 0.4))


def test_flipped_bits_in_the_greetings(well: World) -> None:
    rng, hub = random.Random("greetings"), well.hub
    with well.changing(seed=5):
        for _ in range(15):
            accepted = hub.accepted
            hub.set(up=Faults(flip_after=rng.randrange(1_200)), down=Faults(flip_after=rng.randrange(1_200)))
            hub.cut()
            hub.until_accepted(accepted + 2, within_s=WITHIN_S)
        hub.heal()
        hub.cut()


@pytest.mark.parametrize("direction", ("up", "down", "both"))
def test_a_path_that_falls_silent(well: World, direction: str) -> None:
    """Nobody is told: the edge core has to find out; the next connection is the one that counts for the cloud."""
    silent = Faults(swallow_after=0)
    accepted = well.hub.accepted
    with well.changing(seed=6):
        well.hub.set(
            up=silent if direction != "down" else CLEAN, down=silent if direction != "up" else CLEAN, new=False
        )
        well.hub.until_accepted(accepted + 1, within_s=WITHIN_S)
    well.all_right()
    assert well.count("nodes") == 1


def test_a_path_that_is_silent_from_the_first_byte(well: World) -> None:
    silent = Faults(swallow_after=0)
    well.hub.set(up=silent, down=silent)
    well.hub.cut()
    well.turn_all(7)
    well.wish_all(700)
    well.hub.until_accepted(well.hub.accepted + 2, within_s=WITHIN_S)
    well.hub.heal()


def test_a_connection_overtaken_by_its_successor(well: World) -> None:
    """What the first one had sent comes to the cloud after the second is in use, as if it were the newest."""
    for before in (0, 600, 1_800):
        with well.changing(seed=before):
            accepted = well.hub.accepted
            # The upgrade, or what comes before it, is on the way while the edge core gives up and dials again.
            well.hub.set(up=Faults(hold_after=before), existing=False)
            well.hub.cut_one()
            well.hub.until_accepted(accepted + 1, within_s=WITHIN_S)
            well.hub.set(existing=False)
            well.hub.until_accepted(accepted + 2, within_s=WITHIN_S)
        well.all_right()
        well.hub.heal()
        well.turn_all(900 + before)
        well.wish_all(900 + before)
        well.all_right()


def test_a_slow_and_uneven_path(well: World) -> None:
    slow = Faults(delay_s=0.15, jitter_s=0.3)
    well.hub.set(up=slow, down=slow)
    with well.changing(seed=8):
        time.sleep(5)
    well.all_right()
    well.hub.cut()
    well.turn_all(8)
    well.wish_all(8)
    well.all_right()
    well.hub.heal()
    well.hub.cut()


def test_a_narrow_path(well: World) -> None:
    """16 KB a second, of which each connection takes some for its certificates and its devices."""
    narrow = Faults(bytes_per_s=16_000)
    well.hub.set(up=narrow, down=narrow)
    well.hub.cut()
    with well.changing(seed=9):
        time.sleep(5)
    well.all_right()
    well.hub.heal()
    well.hub.cut()
