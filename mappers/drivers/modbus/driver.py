"""The Modbus driver: TCP today; serial lines and the other transports are refused with a word."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException, ModbusIOException

from dmi.values import Value
from mappers.drivers.modbus.codec import decode_bits, decode_registers, encode_bits, encode_registers
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.settings import ModbusConfig, ModbusVisitor, resolve_visitor
from mappers.sdk import (
    ConfigError,
    ConversionError,
    DeviceId,
    DeviceUnreachable,
    Driver,
    ModelProperty,
    Property,
)

__all__ = ["ModbusDriver"]

logger = logging.getLogger(__name__)


class ModbusDriver(Driver[ModbusConfig, ModbusVisitor]):
    """Modbus TCP."""

    protocol = "modbus"
    protocol_config = ModbusConfig
    visitor_config = ModbusVisitor

    def __init__(self) -> None:
        library = logging.getLogger("pymodbus")
        if library.level == logging.NOTSET:
            # It logs each lost connection and late reply as an error of its own; the runtime reports them once.
            library.setLevel(logging.CRITICAL)

    def check_config(self, config: ModbusConfig) -> ModbusConfig:
        if config.communicate_mode.strip().upper() != "TCP":
            raise ConfigError(
                "communicateMode", f"{config.communicate_mode!r} is not supported: write TCP, or leave it out"
            )
        if not config.ip.strip():
            raise ConfigError("ip", "is empty")
        return config

    def resolve(self, visitor: ModbusVisitor, model: ModelProperty) -> ModbusVisitor:
        return resolve_visitor(visitor, model)

    def held_value(self, property_: Property[ModbusVisitor], value: Value) -> Value:
        visitor, type_ = property_.visitor, property_.model.type
        if not visitor.is_writable:
            raise ConversionError(f"visitors.configData.register: a {visitor.register} cannot be written")
        if visitor.is_bits:
            return decode_bits(encode_bits(value, visitor), visitor, type_)
        return decode_registers(encode_registers(value, visitor), visitor, type_)

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ModbusConfig) -> AsyncIterator[ModbusLink]:
        """Open one TCP connection.

        Raises:
            DeviceUnreachable: No connection within the timeout.
        """

        def end_request(error: ModbusException) -> None:
            if link.waiting and not client.ctx.response_future.done():
                client.ctx.response_future.set_exception(error)

        def changed(connected: bool) -> None:
            if not connected:  # pymodbus would leave the request under way waiting for its timeout
                end_request(ConnectionException("connection lost"))

        def guarded(data: bytes, addr: tuple[Any, ...] | None = None) -> int:
            try:
                return received(data, addr)
            except Exception as error:  # noqa: BLE001  # garbage makes pymodbus raise whatever, into the event loop
                logger.debug("device %s: garbage received: %s", device_id, data.hex())
                end_request(ModbusIOException(f"the reply makes no sense: {error}"))
                return len(data)

        client = AsyncModbusTcpClient(
            config.ip.strip(),
            port=config.port,
            timeout=config.timeout / 1000,
            retries=0,  # the next cycle is the retry
            reconnect_delay=0,  # the runtime connects again
            trace_connect=changed,
        )
        received = client.ctx.callback_data
        client.ctx.callback_data = guarded  # type: ignore[method-assign]  # there is no hook around it
        link = ModbusLink(device_id, config, client)
        try:
            if not await client.connect():
                raise DeviceUnreachable(
                    device_id,
                    f"cannot connect to {config.ip}:{config.port} (refused, or no answer in {config.timeout} ms)",
                )
            yield link
        finally:
            client.close()
