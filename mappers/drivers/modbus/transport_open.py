"""Open the socket or serial port of a Modbus line."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Any, Final

from dmi.types import DeviceId
from mappers.drivers.modbus import framing
from mappers.drivers.modbus.framing import Framing
from mappers.drivers.modbus.settings import SERIAL, ModbusConfig, Mode
from mappers.drivers.modbus.tls import client_context
from mappers.sdk import ConfigError, DeviceUnreachable

__all__ = ["FRAMINGS", "connect"]

FRAMINGS: Final[dict[Mode, Framing]] = {
    "TCP": framing.MBAP,
    "TLS": framing.MBAP,
    "UDP": framing.MBAP,
    "RTU": framing.RTU,
    "RTUOVERTCP": framing.RTU,
    "ASCII": framing.ASCII,
}

MIN_UNACKNOWLEDGED_MS: Final = 3000
"""A network may lose a packet or two."""


async def connect(protocol: Any, device_id: DeviceId, config: ModbusConfig) -> None:
    """Connect `protocol` to what `config` says.

    Raises:
        DeviceUnreachable: Nobody there, or not within the timeout.
        ConfigError: It can never work as it is declared.
    """
    if config.mode in SERIAL:
        await _open_serial(protocol, device_id, config)
        return
    host, port = config.endpoint
    context = client_context(config) if config.mode == "TLS" else None
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(config.timeout / 1000):
            if config.mode == "UDP":
                await loop.create_datagram_endpoint(lambda: protocol, remote_addr=(host, port))
            elif context is None:
                transport, _ = await loop.create_connection(lambda: protocol, host, port)
                _watch(transport, config.timeout)
            else:
                name = config.server_name or host
                transport, _ = await loop.create_connection(
                    lambda: protocol, host, port, ssl=context, server_hostname=name
                )
                _watch(transport, config.timeout)
    except TimeoutError as error:
        raise DeviceUnreachable(device_id, f"cannot connect to {host}:{port} within {config.timeout} ms") from error
    except ssl.SSLCertVerificationError as error:
        raise DeviceUnreachable(device_id, f"{host}:{port} is not trusted: {error.verify_message}") from error
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise DeviceUnreachable(device_id, f"cannot connect to {host}:{port}: {reason or error}") from error


def _watch(transport: asyncio.Transport, timeout_ms: int) -> None:
    """Have the kernel end a connection whose other end is gone without a word, such as a gateway that was restarted,
    when nothing sent is acknowledged: no device behind it has to be waited for. A device that is merely slow or silent
    does acknowledge."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        unacknowledged_ms = max(2 * timeout_ms, MIN_UNACKNOWLEDGED_MS)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unacknowledged_ms)


async def _open_serial(protocol: Any, device_id: DeviceId, config: ModbusConfig) -> None:
    port = config.serial_name
    if "://" in port:  # pyserial would open sockets and write files for some of these
        raise ConfigError("serialName", f"{port[:64]!r} is not a path: write such as /dev/ttyUSB0")
    try:
        import serial.rs485  # type: ignore[import-untyped]  # here, as only a serial line needs it
        from pymodbus.transport.serialtransport import create_serial_connection
    except ImportError as error:
        raise ConfigError("communicateMode", "a serial line needs pyserial: pip install 'kubetwin[modbus]'") from error
    try:
        transport, _ = await create_serial_connection(
            asyncio.get_running_loop(),
            lambda: protocol,
            port,
            baudrate=config.baud_rate,
            bytesize=config.data_bits,
            parity=config.parity,
            stopbits=config.stop_bits,
            timeout=0,
        )
    except (OSError, ValueError) as error:  # serial.SerialException is an OSError
        if isinstance(error, BlockingIOError) or getattr(error, "errno", None) == errno.EAGAIN:
            problem = f"{port} is in use by another process, such as a mapper: only one at a time can have it"
            raise DeviceUnreachable(device_id, problem) from error
        raise DeviceUnreachable(device_id, f"cannot open {port}: {_plain(error)}") from error
    await protocol.made.wait()
    if config.rs485_enabled:
        try:
            transport.sync_serial.rs485_mode = serial.rs485.RS485Settings()  # type: ignore[attr-defined]  # pymodbus' own
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError("rs485Enabled", f"{port} has no RS-485 mode: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip()
