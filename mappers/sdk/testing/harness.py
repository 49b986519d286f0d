"""A mapper that runs while a test does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from dmi.ports import LOCAL, MapperInfo
from mappers.sdk.driver import AnyDriver
from mappers.sdk.mapper import Mapper, run_mapper
from mappers.sdk.testing.edgecore import FakeEdgeCore

__all__ = ["eventually", "running"]


@asynccontextmanager
async def running(driver: AnyDriver, core: FakeEdgeCore, *, name: str = "test-mapper") -> AsyncIterator[Mapper]:
    """Run a mapper with this driver on `core`, from its registration to the end of the block.

    Over sockets if the core serves one, otherwise inside the process. What the mapper fails with comes out at the end.
    """
    started: asyncio.Future[Mapper] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="kubetwin-") as directory:
        over_socket = core.serves_socket
        address = str(Path(directory) / "mapper.sock") if over_socket else f"{LOCAL}{name}"
        info = MapperInfo(name, driver.protocol, address)
        edgecore = core.socket_path if over_socket else core.dmi
        known = len(core.mappers)
        mapper = asyncio.create_task(
            run_mapper(driver, info, edgecore, stop, started=started.set_result), name=f"mapper {name}"
        )
        registered = asyncio.create_task(core.until(lambda: len(core.mappers) > known, 30.0), name="registration")
        try:
            await asyncio.wait({mapper, registered}, return_when=asyncio.FIRST_COMPLETED)
            if mapper.done():
                await mapper
            await registered
            yield await started
        finally:
            registered.cancel()
            stop.set()
            await asyncio.wait([mapper, registered])
            started.cancel()
        await mapper


async def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that nobody announces, looking again and again.

    Raises:
        TimeoutError: It did not come true in time.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # as its docstring says
            await asyncio.sleep(0.005)
