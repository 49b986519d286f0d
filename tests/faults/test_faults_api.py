"""The API server is away: silent, refusing, cut off again and again, or killed."""

import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Faults
from tests.faults.world import NODE, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OUTAGE_S = float(os.environ.get("KUBETWIN_FAULTS_OUTAGE_S", "300"))
"""How long it is silent. What there is to run out meanwhile (Leases, deadlines, pauses, watches) has within 90 s."""
SHORT_S = 12.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=34) as world:
        with world.changing(seed=34):
            time.sleep(2)
        world.all_right()
        world.note_memory()
        yield world


@pytest.mark.parametrize("way", ("silent", "refused", "cut again and again", "killed"))
def test_the_api_server_is_away(well: World, way: str) -> None:
    """What changes meanwhile is at its place when it is back; nodes stay connected, and one that comes waits. A watch
    that fell silent is noticed after 90 s.
    """
    outage_s = OUTAGE_S if way == "silent" else SHORT_S
    silent = Faults(swallow_after=0)
    if way == "silent":
        well.api.set(up=silent, down=silent)
    elif way == "refused":
        well.api.refuse()
        well.api.cut()
    elif way == "killed":
        well.kill("apiserver")
    gone = well.log("cloudcore").count(f"node {NODE} disconnected")
    rng, end, reconnected = random.Random(way), time.monotonic() + outage_s, False
    with well.changing(seed=34, wishes=way != "killed"):
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.1, 1.0))
            if way == "cut again and again":
                well.api.cut(reset=rng.random() < 0.5)
            if not reconnected and time.monotonic() > end - outage_s / 2:
                well.hub.cut()
                reconnected = True
    assert well.log("cloudcore").count(f"node {NODE} disconnected") == gone + 1, "for our own cut alone"
    if way == "killed":
        well.start("apiserver")
    if way in ("silent", "refused"):
        well.api.heal()
        if way == "silent":
            assert well.wrong(), "cloud core cannot have got through"
    well.wish_all(3400)
    well.all_right(110)
