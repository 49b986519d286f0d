"""A mapper process that notes in a file when it holds which device, and every read: `NAME DIRECTORY`, until SIGTERM."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from dmi.ports import MapperInfo
from mappers.sdk import DeviceId, Driver, Property, ReadResult
from mappers.sdk.mapper import run_mapper

__all__ = ["Note", "notes_of"]


class Note(Struct, frozen=True):
    at: float
    """CLOCK_MONOTONIC, one for all processes."""
    mapper: str
    """Its name and process id: one that was started again is another one."""
    what: str
    """`open`, `read` or `close`."""
    device: str


def notes_of(directory: Path) -> list[Note]:
    """What all mappers noted so far, in order of time; a line that a killed one began is left out."""
    lines = [line for file in directory.glob("*.notes") for line in file.read_text().splitlines(keepends=True)]
    fields = [line.split() for line in lines if line.endswith("\n")]
    return sorted((Note(float(at), *rest) for at, *rest in fields), key=lambda note: note.at)


class Nothing(Struct, frozen=True):
    pass


class NotingLink:
    def __init__(self, driver: "NotingDriver", device: DeviceId) -> None:
        self._driver = driver
        self._device = device

    async def read_many(self, properties: Sequence[Property[Nothing]]) -> dict[str, ReadResult]:
        self._driver.note("read", self._device)
        return {p.name: int(time.monotonic() * 1000) for p in properties}


class NotingDriver(Driver[Nothing, Nothing]):
    protocol = "noting"
    protocol_config = Nothing
    visitor_config = Nothing

    def __init__(self, name: str, file: int) -> None:
        self._name = f"{name}:{os.getpid()}"
        self._file = file

    def note(self, what: str, device: DeviceId) -> None:
        os.write(self._file, f"{time.monotonic():.6f} {self._name} {what} {device}\n".encode())

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: Nothing) -> AsyncIterator[NotingLink]:
        self.note("open", device_id)
        try:
            yield NotingLink(self, device_id)
        finally:
            self.note("close", device_id)


async def main(name: str, directory: Path) -> None:
    file = os.open(directory / f"{name}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    info = MapperInfo(name, "noting", str(directory / f"{name}.sock"))
    await run_mapper(NotingDriver(name, file), info, directory / "dmi.sock", stop)
    os.close(file)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
