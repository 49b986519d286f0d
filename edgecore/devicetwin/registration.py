"""What a mapper gets in the answer to its registration: as much of its full set as one message and the patience of a
stock mapper hold. The rest is handed over device by device right after it.

A Go mapper waits one second for the answer and ends without it (DMI contract 0.2, rule 1); ours wait ten. The receiver
takes no more than 4 MiB. A mapper that ran before what no longer fits is told that the answer is partial: ours let that
run on until they are told, Go mappers register at their start only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from dmi import ConfigError, DeviceId
from dmi.ports import Registration
from dmi.rpc import MAX_MESSAGE_BYTES
from edgecore.devicetwin.catalog import Catalog, Declaration

__all__ = ["BUDGET", "answer_of", "full_set"]

BUDGET: Final = 0.4
"""Of the time that the mapper waits, for making the answer; encoding and storing it come after. A thousand devices of
ten properties take 0.3 s here."""
_ANSWER_BYTES: Final = MAX_MESSAGE_BYTES - 256 * 1024
"""Of devices and models in one answer; the rest is for what frames them."""
_READ_AT_ONCE: Final = 100
_SLICE_S: Final = 0.01
"""Then the loop has its turn: other mappers report meanwhile."""


async def full_set(
    devices: Iterable[DeviceId],
    *,
    catalog: Catalog,
    bodies: Callable[[Iterable[DeviceId]], Awaitable[Mapping[DeviceId, bytes]]],
    wanted: Callable[[DeviceId], bytes | None],
    until: float,
) -> list[Declaration]:
    """The declarations of these devices that are still `wanted` when it is their turn, as far as they go; `until`: loop
    time.
    """
    loop = asyncio.get_running_loop()
    found: list[Declaration] = []
    models: set[str] = set()
    size, pause_at, rest = 0, loop.time() + _SLICE_S, iter(devices)
    while (some := list(islice(rest, _READ_AT_ONCE))) and loop.time() < until:
        for device, body in (await bodies(some)).items():
            if (now := loop.time()) >= pause_at:
                await asyncio.sleep(0)
                pause_at = now + _SLICE_S
            with contextlib.suppress(ConfigError):  # the entry has the problem
                declaration = catalog.declaration(body)
                if not wanted(device):
                    continue
                size += len(declaration.encoded) + 8
                if declaration.model.id not in models:
                    models.add(declaration.model.id)
                    size += len(catalog.encoded_model(declaration.model.id)) + 8
                if size > _ANSWER_BYTES:
                    return found
                found.append(declaration)
    return found


def answer_of(declarations: Sequence[Declaration], *, partial: bool = False) -> Registration:
    models = {d.model.id: d.model for d in declarations}
    return Registration(
        devices=tuple(d.device for d in declarations),
        models=tuple(models.values()),
        partial=partial,
        encoded=tuple(d.encoded for d in declarations),
    )
