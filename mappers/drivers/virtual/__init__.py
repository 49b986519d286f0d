"""Devices that exist only here: waveforms, set-points and faults on demand. No hardware, no port, no library."""

from __future__ import annotations

from mappers.drivers.virtual.driver import VirtualDriver, VirtualProtocolDriver
from mappers.drivers.virtual.plant import Faults, VirtualDevice
from mappers.drivers.virtual.settings import VirtualConfig, VirtualVisitor

__all__ = ["Faults", "VirtualConfig", "VirtualDevice", "VirtualDriver", "VirtualProtocolDriver", "VirtualVisitor"]
