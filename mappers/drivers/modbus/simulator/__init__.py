"""A Modbus device without hardware, for tests and trials: `kubetwin simulate modbus`, or `Simulator` in Python.

pymodbus' own servers carry the frames, so what a client meets is a real device on a real socket, serial line or
pseudo-terminal; memory, movement and faults are ours.
"""

from __future__ import annotations

from mappers.drivers.modbus.plant import Image
from mappers.drivers.modbus.simulator.device import Request
from mappers.drivers.modbus.simulator.faults import Faults, parse_faults
from mappers.drivers.modbus.simulator.memory import ANY_UNIT
from mappers.drivers.modbus.simulator.run import Options, run
from mappers.drivers.modbus.simulator.scene import Motion, Scene, boiler_scene
from mappers.drivers.modbus.simulator.servers import SerialPort
from mappers.drivers.modbus.simulator.simulator import Simulator

__all__ = [
    "ANY_UNIT",
    "Faults",
    "Image",
    "Motion",
    "Options",
    "Request",
    "Scene",
    "SerialPort",
    "Simulator",
    "boiler_scene",
    "parse_faults",
    "run",
]
