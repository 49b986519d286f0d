"""After every scenario: each last value is right at both ends, and no process has grown, ended or raised."""

from collections.abc import Iterator

import pytest

from tests.faults.world import World


@pytest.fixture
def well(world: World) -> Iterator[World]:
    """The file's `world`, looked at again after the test."""
    said = {part: len(world.log(part)) for part in world.running}
    yield world
    world.all_right()
    world.assert_well(said)


@pytest.fixture(autouse=True)
def no_child_left() -> None:
    """Here processes and paths outlive a test on purpose; `faulty_world` ends what it started."""
