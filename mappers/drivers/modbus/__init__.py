"""Modbus for mappers. The one place that imports pymodbus."""

from __future__ import annotations

from mappers.drivers.modbus.driver import ModbusDriver
from mappers.drivers.modbus.settings import ModbusConfig, ModbusVisitor

__all__ = ["ModbusConfig", "ModbusDriver", "ModbusVisitor"]
