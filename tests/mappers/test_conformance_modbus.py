"""The Modbus driver passes the conformance suite over every transport, behind a proxy that spoils what passes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from mappers.drivers.modbus import ModbusDriver
from mappers.drivers.modbus.settings import SERIAL, Mode
from mappers.drivers.modbus.simulator import Image, SerialPort, Simulator
from mappers.sdk.testing import PtyFaultProxy, TcpFaultProxy, UdpFaultProxy
from mappers.sdk.testing.conformance import DriverConformance, Subject
from tests.mappers.modbus_world import Certificates

ADDRESSES = {"level": 0, "set-point": 10}
SILENT_UNIT = 9


class ModbusSubject(Subject):
    model = DeviceModel(
        "lab",
        "meter",
        properties=(ModelProperty("level", "FLOAT", "ReadOnly"), ModelProperty("set-point", "INT")),
    )
    readable, values = "level", ("1.5", "2.5")
    writable, desired = "set-point", ("7", "8")
    wrong_config: Mapping[str, Scalar] = {
        "slaveID": 300,
        "timeout": -1,
        "communicateMode": "telepathy",
        "parity": "maybe",
    }
    wrong_visitor: Mapping[str, Scalar] = {"offset": 70_000, "register": "Drawer", "dataType": "colour", "limit": 9}
    other_config: Mapping[str, Scalar] = {"timeout": 300}
    other_visitor: Mapping[str, Scalar] = {"offset": ADDRESSES["set-point"], "scale": 1}
    reply_timeout_s = 0.4

    def __init__(self, simulator: Simulator, reach: dict[str, Any]) -> None:
        self.driver = ModbusDriver()
        self.simulator = simulator
        self.device = self._device("meter-1", {**reach, "slaveID": 1})
        self.neighbour = self._device("meter-2", {**reach, "slaveID": SILENT_UNIT})

    def _device(self, name: str, config: dict[str, Any]) -> Device:
        def visitor(property_name: str, scale: float) -> Visitor:
            offset = ADDRESSES[property_name]
            return Visitor("modbus", {"register": "HoldingRegister", "offset": offset, "limit": 1, "scale": scale})

        return Device(
            "lab",
            name,
            model="meter",
            protocol="modbus",
            protocol_config={"timeout": int(self.reply_timeout_s * 1000), **config},
            properties=(
                DeviceProperty("level", visitor=visitor("level", 0.1)),
                DeviceProperty("set-point", visitor=visitor("set-point", 1)),
            ),
        )

    async def start(self) -> None:
        await self.simulator.__aenter__()

    async def stop(self) -> None:
        await self.simulator.__aexit__(None, None, None)

    async def set_value(self, property_name: str, text: str) -> None:
        raw = round(float(text) * (10 if property_name == "level" else 1))
        await self.simulator.write("HoldingRegister", ADDRESSES[property_name], [raw], unit=1)

    async def get_value(self, property_name: str) -> str:
        (raw,) = await self.simulator.read("HoldingRegister", ADDRESSES[property_name], unit=1)
        return str(raw / 10 if property_name == "level" else raw)


@contextlib.asynccontextmanager
async def modbus_subject(mode: Mode, certificates: Certificates) -> AsyncIterator[ModbusSubject]:
    image = Image(holding_registers={0: 0, 10: 0})
    reach: dict[str, Any] = {"communicateMode": mode}
    async with contextlib.AsyncExitStack() as stack:
        proxy: PtyFaultProxy | TcpFaultProxy | UdpFaultProxy
        if mode in SERIAL:
            line = await stack.enter_async_context(PtyFaultProxy())
            simulator = Simulator(units={1: image}, mode=mode, serial=SerialPort(line.device_path))
            await stack.enter_async_context(simulator)
            reach |= {"serialName": line.driver_path, "baudRate": 115200}
            proxy = line
        else:
            tls = certificates.server_context() if mode == "TLS" else None
            simulator = await stack.enter_async_context(Simulator(units={1: image, 9: image}, mode=mode, tls=tls))
            net = (UdpFaultProxy if mode == "UDP" else TcpFaultProxy)("127.0.0.1", simulator.port)
            await stack.enter_async_context(net)
            reach |= {"ip": "127.0.0.1", "port": net.port}
            proxy = net
        if mode == "TLS":
            reach |= {
                "caFile": certificates.ca_file,
                "certFile": certificates.cert_file,
                "keyFile": certificates.key_file,
            }
        simulator.faults.silent_units = {SILENT_UNIT}
        subject = ModbusSubject(simulator, reach)
        subject.faults = proxy.faults
        yield subject


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


class TestTcp(DriverConformance, lacks=("pushed",)):
    @pytest.fixture
    async def subject(self, certificates: Certificates) -> AsyncIterator[Subject]:
        async with modbus_subject("TCP", certificates) as subject:
            yield subject


class TestTls(DriverConformance, lacks=("pushed",)):
    @pytest.fixture
    async def subject(self, certificates: Certificates) -> AsyncIterator[Subject]:
        async with modbus_subject("TLS", certificates) as subject:
            yield subject


class TestRtu(DriverConformance, lacks=("pushed",)):
    @pytest.fixture
    async def subject(self, certificates: Certificates) -> AsyncIterator[Subject]:
        async with modbus_subject("RTU", certificates) as subject:
            yield subject


@pytest.mark.slow
class TestOtherTransports(DriverConformance, lacks=("pushed",)):
    @pytest.fixture(params=("UDP", "RTUOVERTCP", "ASCII"))
    async def subject(self, request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Subject]:
        async with modbus_subject(request.param, certificates) as subject:
            yield subject
