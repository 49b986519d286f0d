"""What KubeEdge's own edge core takes of a twin: it answers OK and drops the rest without a word (DMI contract 0.1,
rules 10 and 13). Nothing can be done about that from here but to say it, once for each property.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from dmi.twins import Twin
from dmi.types import DeviceId

__all__ = ["StockFilter"]

logger = logging.getLogger(__name__)

_VALUE: Final = re.compile(r"[a-zA-Z0-9_.,:/@#-]{0,512}")
_NAME: Final = re.compile(r"[a-zA-Z0-9_.,:/@#-]{1,128}")


class StockFilter:
    """Makes twins fit for a stock edge core as far as possible, and names those that are lost."""

    def __init__(self) -> None:
        self._told: set[tuple[DeviceId, str]] = set()
        self.lost = 0
        """Properties in reports that a stock edge core dropped."""

    def fit(self, device: DeviceId, twins: Iterable[Twin]) -> list[Twin]:
        """The twins to send. A desired value that does not fit is left out, or it would take the reported one along."""
        return [self._fit(device, twin) for twin in twins]

    def forget(self, device: DeviceId) -> None:
        self._told = {(other, name) for other, name in self._told if other != device}

    def _fit(self, device: DeviceId, twin: Twin) -> Twin:
        if not _VALUE.fullmatch(twin.desired.value):
            twin = replace(twin, desired=replace(twin.desired, value=""))
        name = twin.property_name
        if _VALUE.fullmatch(twin.reported.value) and _NAME.fullmatch(name):
            return twin
        self.lost += 1
        if (device, name) not in self._told:
            self._told.add((device, name))
            logger.warning(
                "device %s: property %s: KubeEdge's edge core drops it: name and value may have letters, digits and "
                "-_.,:/@# only, the value 512 of them at most",
                device,
                name,
            )
        return twin
