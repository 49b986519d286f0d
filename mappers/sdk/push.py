"""The data plane, once there is something for it to do: most mappers have no push method, and it costs 3 MB."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dmi.types import Device, DeviceId
from mappers.sdk.config import DataConfig
from mappers.sdk.samples import Sample

if TYPE_CHECKING:
    from mappers.sdk.sinks import DataPlane, SinkStats

__all__ = ["PushPlane"]

logger = logging.getLogger(__name__)


class PushPlane:
    """`Samples` of one mapper, for the length of an `async with`. Sinks are loaded with the first push method that is
    declared, or at once if samples of an earlier run wait in `folder`.
    """

    def __init__(self, config: DataConfig, mapper: str, folder: Path) -> None:
        self._config = config
        self._mapper = mapper
        self._folder = folder
        self._plane: DataPlane | None = None

    async def __aenter__(self) -> Self:
        if self._has_files():
            self._plane = self._load()
            await self._plane.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._plane is not None:
            await self._plane.__aexit__(kind, error, trace)

    def declare(self, device: Device) -> Sequence[str]:
        if self._plane is None:
            if not any(p.push_method for p in device.properties):
                return ()
            self._plane = self._load()  # nothing waits on disk, so there is nothing else to do to enter it
        return self._plane.declare(device)

    def forget(self, device: DeviceId) -> None:
        if self._plane is not None:
            self._plane.forget(device)

    def put(self, sample: Sample) -> None:
        if self._plane is not None:
            self._plane.put(sample)

    def stats(self) -> Sequence[SinkStats]:
        return self._plane.stats() if self._plane is not None else ()

    @property
    def files_set_aside(self) -> int:
        return self._plane.files_set_aside if self._plane is not None else 0

    def _has_files(self) -> bool:
        try:
            return self._folder.is_dir() and any(self._folder.iterdir())
        except OSError as error:
            logger.error("samples of an earlier run, if any, cannot be taken up: %s", error)
            return False

    def _load(self) -> DataPlane:
        from mappers.sdk.sinks import DataPlane

        return DataPlane(self._config, self._mapper, self._folder)
