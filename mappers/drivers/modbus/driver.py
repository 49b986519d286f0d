"""The Modbus driver: TCP, TLS, UDP, RTU, RTU over TCP and ASCII. Devices on one line share it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final

from dmi.values import Value
from mappers.drivers.modbus.checks import check_config, config_warnings, resolve_visitor
from mappers.drivers.modbus.codec import decode_bits, decode_registers, encode_bits, encode_registers
from mappers.drivers.modbus.discover import DISCOVERY, discover, probe_timeout_s
from mappers.drivers.modbus.learned import Learned
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.settings import SERIAL, ModbusConfig, ModbusVisitor
from mappers.drivers.modbus.transport import Owed, Transport, open_transport
from mappers.sdk import (
    ConversionError,
    DeviceId,
    Driver,
    Found,
    ModelProperty,
    Property,
    Scalar,
    SharedLines,
)

__all__ = ["ModbusDriver"]

LineKey = tuple[str, ...]

_MOST_LEARNED: Final = 4096


class ModbusDriver(Driver[ModbusConfig, ModbusVisitor]):
    """Modbus. Devices with the same serial port, or the same address and port, share one connection and take turns on
    it, as a bus and a gateway want it; `shareConnection: false` gives a network device one of its own."""

    protocol = "modbus"
    protocol_config = ModbusConfig
    visitor_config = ModbusVisitor

    def __init__(self) -> None:
        self._lines: SharedLines[LineKey, Transport] = SharedLines()
        self._owed: dict[LineKey, Owed] = {}
        """By line, for those that open it anew."""
        self._learned: dict[DeviceId, tuple[ModbusConfig, Learned]] = {}

    def check_config(self, config: ModbusConfig) -> ModbusConfig:
        return check_config(config)

    def config_warnings(self, config: ModbusConfig) -> Iterable[tuple[str, str]]:
        return config_warnings(config)

    def resolve(self, visitor: ModbusVisitor, model: ModelProperty) -> ModbusVisitor:
        return resolve_visitor(visitor, model)

    def held_value(self, property_: Property[ModbusVisitor], value: Value) -> Value:
        visitor, type_ = property_.visitor, property_.model.type
        if not visitor.is_writable:
            raise ConversionError(f"visitors.configData.register: a {visitor.register} cannot be written")
        if visitor.is_bits:
            return decode_bits(encode_bits(value, visitor), visitor, type_)
        return decode_registers(encode_registers(value, visitor), visitor, type_)

    async def discover(self, config: ModbusConfig) -> AsyncIterator[Found]:
        async with open_transport(DISCOVERY, config, lambda _: None) as transport:

            async def ask(unit: int, request: bytes) -> bytes:
                if config.inter_frame_delay:
                    await asyncio.sleep(config.inter_frame_delay / 1000)
                return await transport.ask(DISCOVERY, unit, request, probe_timeout_s(config))

            async with aclosing(discover(config, ask)) as search:
                async for found in search:
                    yield found

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ModbusConfig) -> AsyncIterator[ModbusLink]:
        """The device's unit on its line, opened if nobody uses it yet.

        Raises:
            DeviceUnreachable: No connection within the timeout.
            ConfigError: Another device uses the line with other settings, or a setting can never work.
        """

        def open_(broken: Callable[[str], None]) -> AbstractAsyncContextManager[Transport]:
            return open_transport(device_id, config, broken, owed=self._owed.setdefault(key, {}))

        key = line_key(device_id, config)
        async with self._lines.use(
            key, open_, device_id=device_id, parameters=line_parameters(config), settings=config
        ) as line:
            yield ModbusLink(device_id, config, line, self._learned_of(device_id, config))

    def _learned_of(self, device_id: DeviceId, config: ModbusConfig) -> Learned:
        """What earlier links of the device found out about reading it, for as long as its config stays."""
        known = self._learned.pop(device_id, None)
        learned = known[1] if known and known[0] == config else Learned(config.max_registers, config.max_gap)
        self._learned[device_id] = (config, learned)
        if len(self._learned) > _MOST_LEARNED:
            del self._learned[next(iter(self._learned))]  # of the device that connected longest ago
        return learned


def line_key(device_id: DeviceId, config: ModbusConfig) -> LineKey:
    """What devices on one line have in common."""
    if config.mode in SERIAL:
        return ("serial", os.path.realpath(config.serial_name))  # two names of one port, as in /dev/serial/by-id
    host, port = config.endpoint
    kind = "udp" if config.mode == "UDP" else "tcp"
    return (kind, host.lower(), str(port)) if config.share_connection else (kind, host.lower(), str(port), device_id)


def line_parameters(config: ModbusConfig) -> dict[str, Scalar]:
    """What devices on one line must agree on, by key."""
    if config.mode in SERIAL:
        return {
            "communicateMode": config.mode,
            "baudRate": config.baud_rate,
            "dataBits": config.data_bits,
            "stopBits": config.stop_bits,
            "parity": config.parity,
            "rs485Enabled": config.rs485_enabled,
        }
    parameters: dict[str, Scalar] = {"communicateMode": config.mode}
    if config.mode == "TLS":
        parameters |= {
            "caFile": config.ca_file,
            "certFile": config.cert_file,
            "keyFile": config.key_file,
            "serverName": config.server_name,
        }
    return parameters
