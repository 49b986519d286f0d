"""A Modbus TCP server with many units, as a process of its own: `python -m benchmarks.modbus_fleet UNITS REGISTERS
[PORT]`.

Prints its port. Every unit has REGISTERS holding registers from 0 on, written from outside by a plain client.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import yaml
from pymodbus.client import ModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

__all__ = ["Fleet", "running_fleet"]


class Fleet:
    """The devices and their declarations."""

    def __init__(self, port: int, units: int, registers: int) -> None:
        self.port = port
        self.units = units
        self.registers = registers
        self.wanted: dict[int, list[int]] = {unit: [0] * registers for unit in range(1, units + 1)}
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=10)
        if not self._client.connect():
            raise RuntimeError(f"no Modbus server on port {port}")

    def close(self) -> None:
        self._client.close()

    def write(self, unit: int, values: list[int]) -> None:
        """Change all registers of a unit; what the API must show in the end."""
        self.wanted[unit] = values
        answer = self._client.write_registers(0, values, device_id=unit)
        if answer.isError():
            raise RuntimeError(f"unit {unit}: {answer}")

    def change_every_second(self, seconds: float) -> float:
        """Change every register of every unit once a second; returns when the last was written, in monotonic time."""
        start = time.monotonic()
        round_, written = 0, start
        while written < start + seconds:
            round_ += 1
            began = time.monotonic()
            for unit in self.wanted:
                self.write(unit, [(round_ * 7 + unit + i) % 65536 for i in range(self.registers)])
            written = time.monotonic()
            time.sleep(max(0.0, 1.0 - (written - began)))
        return written

    def name(self, unit: int) -> str:
        return f"fleet-{unit}"

    @property
    def collection(self) -> str:
        """Path of all its devices at the API, to delete them in one request."""
        return "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices?labelSelector=part%3Dfleet"

    def manifests(self, node: str) -> str:
        """One model and a device a unit, collected every second."""
        properties = [f"r{i}" for i in range(self.registers)]
        documents: list[dict[str, Any]] = [
            {
                "apiVersion": "devices.kubeedge.io/v1beta1",
                "kind": "DeviceModel",
                "metadata": {"name": "fleet", "namespace": "default"},
                "spec": {
                    "protocol": "modbus",
                    "properties": [
                        {
                            "name": name,
                            "type": "INT",
                            "accessMode": "ReadWrite",
                            "visitors": {
                                "protocolName": "modbus",
                                "configData": {
                                    "register": "HoldingRegister",
                                    "offset": i,
                                    "limit": 1,
                                    "dataType": "int",
                                },
                            },
                        }
                        for i, name in enumerate(properties)
                    ],
                },
            }
        ]
        documents += [
            {
                "apiVersion": "devices.kubeedge.io/v1beta1",
                "kind": "Device",
                "metadata": {"name": self.name(unit), "namespace": "default", "labels": {"part": "fleet"}},
                "spec": {
                    "deviceModelRef": {"name": "fleet"},
                    "nodeName": node,
                    "protocol": {
                        "protocolName": "modbus",
                        "configData": {"ip": "127.0.0.1", "port": self.port, "slaveID": unit},
                    },
                    "properties": [{"name": n, "collectCycle": 1000, "reportToCloud": True} for n in properties],
                },
            }
            for unit in self.wanted
        ]
        return yaml.safe_dump_all(documents)


@contextlib.contextmanager
def running_fleet(units: int, registers: int) -> Iterator[Fleet]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.modbus_fleet", str(units), str(registers)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None  # PIPE
        fleet = Fleet(int(process.stdout.readline()), units, registers)
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


async def _serve(units: int, registers: int, port: int) -> None:
    devices = [
        SimDevice(unit, simdata=[SimData(0, values=[0] * registers, datatype=DataType.REGISTERS)])
        for unit in range(1, units + 1)
    ]
    server = ModbusTcpServer(devices, address=("127.0.0.1", port))
    await server.serve_forever(background=True)
    print(server.transport.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]  # an asyncio.Server
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
