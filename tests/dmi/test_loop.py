"""A loop that goes on although something in it calls `sys.exit`."""

import asyncio
import sys

import pytest

from dmi.loop import run_to_end


async def leave() -> None:
    sys.exit("strayed")


def test_what_exits_beside_the_program_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        went_on = asyncio.Event()
        task = asyncio.create_task(leave())
        loop.call_soon(sys.exit, 3)
        loop.call_soon(went_on.set)  # in the same turn of the loop
        await went_on.wait()
        with pytest.raises(SystemExit):
            await task
        return 7

    assert run_to_end(main()) == 7
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"sys.exit({code}) in the event loop does not end this process" for code in ("'strayed'", "3")]
    assert caplog.records[0].exc_info
    assert "in leave" in (caplog.text)


def test_the_program_itself_ends_as_it_wants() -> None:
    with pytest.raises(SystemExit, match="strayed"):
        run_to_end(leave())

    async def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_to_end(fail())


def test_what_is_left_is_cancelled_at_the_end() -> None:
    left: list[asyncio.Task[bool]] = []

    async def main() -> None:
        left.append(asyncio.create_task(asyncio.Event().wait()))
        await asyncio.sleep(0)

    run_to_end(main())
    assert left[0].cancelled()
