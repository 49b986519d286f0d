"""One running demo per test file: the files run side by side, the tests of a file in order."""

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Demo, running_demo, wait_for


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """A demo whose example device has reported everything it has."""
    with running_demo() as demo:
        wait_for(
            lambda: len([t for t in demo.status("boiler-1").get("twins", []) if t["reported"]["value"]]) == 7,
            within_s=30, what="all seven properties of boiler-1 are at the API",
        )  # fmt: skip
        yield demo


@pytest.fixture(autouse=True)
def no_child_left() -> None:
    """Here processes outlive a test on purpose: `running_demo` checks at its end that none is left."""
