"""Whatever is killed and started in whatever order: afterwards every last value is right, at both ends.

The first order in which a part is started before all others begins with empty disks, as a first start does.

`orders.covering` gives orders in which every four of the six parts come in each of their 24 orders, for starting and
for killing alike; that is what `make test-slow` runs. With `KUBETWIN_MATRIX=all` (`make test-matrix`) it is all 720.
"""

import os
import random
from collections.abc import Iterator
from itertools import permutations

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.orders import covering
from tests.e2e.six_parts import PARTS, READ, WRITTEN, SixParts, six_parts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WITHIN_S = 30.0
ORDERS = list(permutations(PARTS)) if os.environ.get("KUBETWIN_MATRIX") == "all" else covering(PARTS, strength=4)
KILLS = random.Random(4).sample(ORDERS, len(ORDERS))
FIRST_STARTS = {next(number for number, order in enumerate(ORDERS) if order[0] == part) for part in PARTS}
WHY_EVERY = 5


@pytest.fixture(scope="module")
def parts() -> Iterator[SixParts]:
    with six_parts() as parts:
        parts.turn(1)
        parts.want(2)
        wait_for(lambda: _right(parts, 1, 2), within_s=WITHIN_S, what="the first values are at both ends")
        yield parts


@pytest.mark.parametrize("number", range(len(ORDERS)))
def test_every_last_value_is_right_after(parts: SixParts, number: int) -> None:
    reported, wanted, later = 1000 + number, 3000 + number, 9000 + number
    for part in KILLS[number]:
        if part == "apiserver":
            parts.want(5000 + number)  # still to be delivered when everything goes
        if part == "device":
            parts.turn(7000 + number)
        parts.kill(part)
        parts.assert_running()
    if number in FIRST_STARTS:
        parts.forget()
    for part in ORDERS[number]:
        parts.start(part)
        if part == "device":
            parts.turn(reported)
        if part == "apiserver":
            if number in FIRST_STARTS:
                parts.declare()
            parts.want(wanted)
        parts.assert_running()
    order = f"killed {' '.join(KILLS[number])}; started {' '.join(ORDERS[number])}"
    wait_for(lambda: _right(parts, reported, wanted), within_s=WITHIN_S, what=f"every value is right, {order}")
    parts.app.until_subscribed(WITHIN_S)
    wait_for(lambda: parts.asked_over_mqtt(1) == str(reported), within_s=WITHIN_S, what=f"an app is answered, {order}")
    parts.turn(later)
    wait_for(lambda: _told(parts, later), within_s=WITHIN_S, what=f"an app is told of the next value, {order}")
    if number % WHY_EVERY == 0:
        why = parts.why()
        assert why.returncode == 0, f"{order}\n{why.stdout}"
    parts.assert_running()


def _right(parts: SixParts, reported: int, wanted: int) -> bool:
    assert parts.shown() == {
        "state": "online",
        READ: (str(reported), "good", ""),
        WRITTEN: (str(wanted), "good", "applied"),
    }
    assert parts.register() == wanted
    return True


def _told(parts: SixParts, value: int) -> bool:
    assert parts.heard_over_mqtt() == (str(value), str(value))
    return True
