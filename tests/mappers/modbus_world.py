"""A simulated Modbus device on any transport, and a link to it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import trustme

from dmi.types import DeviceId, ModelProperty, PropertyType
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.settings import SERIAL, Mode
from mappers.drivers.modbus.simulator import Faults, Image, Simulator
from mappers.sdk import Property

MODES: tuple[Mode, ...] = get_args(Mode)
DEVICE = DeviceId("plant/m1")

PropertyOf = Property[ModbusVisitor]


class Certificates:
    """A CA, a server of 127.0.0.1 and plc.local, and a client, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.other_ca = trustme.CA(), trustme.CA()
        self.ca_file, self.other_ca_file = str(folder / "ca.pem"), str(folder / "other-ca.pem")
        self.cert_file, self.key_file = str(folder / "client.pem"), str(folder / "client.key")
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.other_ca.cert_pem.write_to_path(self.other_ca_file)
        client = self.ca.issue_cert("mapper")
        client.private_key_pem.write_to_path(self.key_file)
        for blob in client.cert_chain_pems:
            blob.write_to_path(self.cert_file, append=True)

    def server_context(self, *names: str, client_needed: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1", "plc.local"))).configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED if client_needed else ssl.CERT_NONE
        return context


def simulator(
    mode: Mode, certificates: Certificates, units: Mapping[int, Image], faults: Faults | None = None
) -> Simulator:
    tls = certificates.server_context() if mode == "TLS" else None
    return Simulator(units=units, mode=mode, tls=tls, faults=faults)


def config_for(running: Simulator, certificates: Certificates, **rest: Any) -> ModbusConfig:
    """How to reach it; `rest` are fields of `ModbusConfig`."""
    mode = running.mode
    where: dict[str, Any] = (
        {"serial_name": running.address} if mode in SERIAL else {"ip": running.host, "port": running.port}
    )
    if mode == "TLS":
        where |= {
            "ca_file": certificates.ca_file,
            "cert_file": certificates.cert_file,
            "key_file": certificates.key_file,
        }
    # A byte of a real line takes long; a pseudo-terminal has no speed, and the rest between frames follows from it.
    fields = {"communicate_mode": mode, "slave_id": 1, "timeout": 5000, "baud_rate": 115200, **where, **rest}
    return ModbusDriver().check_config(ModbusConfig(**fields))


@contextlib.asynccontextmanager
async def linked(driver: ModbusDriver, config: ModbusConfig, device: DeviceId = DEVICE) -> AsyncIterator[ModbusLink]:
    async with driver.connect(device, config) as link:
        yield link


def property_(name: str, register: Any, offset: int, type_: PropertyType = "INT", **rest: Any) -> PropertyOf:
    model = ModelProperty(name, type_)
    return Property(name, ModbusDriver().resolve(ModbusVisitor(register, offset, **rest), model), model)


async def until(is_so: Callable[[], bool]) -> None:
    while True:
        if is_so():
            return
        await asyncio.sleep(0.002)


async def read_one(link: ModbusLink, wanted: PropertyOf) -> Any:
    return (await link.read_many((wanted,)))[wanted.name]
