"""Mappers inside this process. What runs them is found by entry point: edge core itself knows no mapper.

They cost no socket and no second interpreter, and share this process and its event loop: a driver that blocks the loop
holds up everything here, which their watchdog names; one that fails is contained, and started over with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from pathlib import Path
from typing import Any, Final

import msgspec

from dmi import ConfigError
from dmi.local import LocalDmi
from edgecore.config import EdgeCoreConfig

__all__ = ["GROUP", "EmbeddedMappers", "Prepared", "prepare"]

logger = logging.getLogger(__name__)

GROUP: Final = "kubetwin.embedded"
"""Entry-point group of modules with `prepare(settings, *, where, directory) -> str` and `run(prepared, dmi, stop, *,
failures)`."""
ENTRANCE: Final = "mappers"
RESTART_S: Final = (1.0, 60.0)
END_S: Final = 2.5
"""For devices to be let go of and last reports to be stored."""


class Prepared(msgspec.Struct, frozen=True):
    """Settings that were checked, and the module that runs them."""

    module: str
    settings: str


def prepare(config: EdgeCoreConfig, *, where: str) -> Prepared | None:
    """Check `modules.mappers`; None: there is nothing to run. For the process that reads the settings.

    Raises:
        ConfigError: They cannot work, or nothing that runs mappers is installed.
    """
    mappers = config.modules.mappers
    if not mappers.enable:
        return None
    from importlib.metadata import entry_points  # 3 MB that the process which runs does not need

    entrance = next(iter(entry_points(group=GROUP, name=ENTRANCE)), None)
    if entrance is None:
        raise ConfigError(
            f"{where}.enable", f"nothing that runs mappers is installed (entry point {GROUP}: {ENTRANCE})"
        )
    try:
        module: Any = importlib.import_module(entrance.module)
    except ImportError as error:
        problem = f"{error}: install the drivers, such as pip install 'kubetwin[modbus]'"
        raise ConfigError(f"{where}.enable", problem) from error
    directory = Path(config.database.data_source).absolute().parent
    settings = module.prepare(msgspec.to_builtins(mappers), where=where, directory=directory)
    return Prepared(entrance.module, settings)


class EmbeddedMappers:
    def __init__(self, prepared: Prepared, dmi: LocalDmi) -> None:
        self._prepared = prepared
        self._dmi = dmi
        self.failures = 0
        """Times they ended by themselves and were started over."""

    async def run(self) -> None:
        """Run until cancelled; then end in order, so that the last values are stored. Nothing else comes out."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._keep(stop), name="mappers")
        try:
            await asyncio.shield(task)
        finally:
            stop.set()
            _, late = await asyncio.wait([task], timeout=END_S)
            if late:
                logger.error("the mappers did not end within %.1f s: cancelled", END_S)
                task.cancel()
                await asyncio.wait([task], timeout=END_S)

    async def _keep(self, stop: asyncio.Event) -> None:
        delay_s = RESTART_S[0]
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            began = loop.time()
            try:
                module: Any = importlib.import_module(self._prepared.module)
                await module.run(self._prepared.settings, self._dmi, stop, failures=self.failures)
            except (Exception, SystemExit):
                logger.exception("the mappers of this process failed")
            if stop.is_set():
                return
            self.failures += 1
            delay_s = RESTART_S[0] if loop.time() - began > RESTART_S[1] else min(delay_s * 2, RESTART_S[1])
            logger.error(
                "the mappers of this process ended (%d so far): starting them in %.0f s", self.failures, delay_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await stop.wait()
