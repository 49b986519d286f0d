"""pymodbus' servers with a simulated device behind them, and with faults between its reply and the wire."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import tty
from typing import Any, Final, Literal, Protocol, cast

from msgspec import Struct
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusIOException
from pymodbus.framer import FramerType
from pymodbus.pdu import ExceptionResponse, ModbusPDU
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusTlsServer, ModbusUdpServer
from pymodbus.server.base import ModbusBaseServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice
from pymodbus.transaction import TransactionManager

from mappers.drivers.modbus.settings import SERIAL
from mappers.drivers.modbus.simulator.device import BUS, Device

__all__ = ["PseudoTerminal", "SerialPort", "Server", "listen"]

logger = logging.getLogger(__name__)

_SILENCE_S: Final = 0.05
"""On a bus, what follows such a pause begins a frame. (The standard says 3.5 characters; no process can tell.)"""
_READ_SIZE: Final = 4096


class SerialPort(Struct, frozen=True):
    """A real serial port."""

    path: str
    baud_rate: int = 9600
    data_bits: int = 8
    stop_bits: int = 1
    parity: Literal["N", "E", "O"] = "N"


class Server(Protocol):
    """A running server: `address` is `host:port` or the path of the serial port."""

    address: str
    port: int
    """0 on a serial line."""

    async def close(self) -> None: ...


async def listen(
    device: Device, host: str, port: int, *, serial: SerialPort | None = None, tls: ssl.SSLContext | None = None
) -> Server:
    """Start the server of the device's mode; without `serial`, RTU and ASCII make a pseudo-terminal.

    Raises:
        OSError: The address is taken, or there is no such serial port.
        ValueError: TLS without `tls`.
    """
    framer = {"RTU": FramerType.RTU, "RTUOVERTCP": FramerType.RTU, "ASCII": FramerType.ASCII}.get(
        device.mode, FramerType.SOCKET
    )
    if device.mode in SERIAL and serial is None:
        return PseudoTerminal(device, framer)
    server: ModbusBaseServer
    if device.mode in SERIAL:
        assert serial is not None  # noqa: S101  # for mypy
        server = _SerialServer(
            _NOTHING, framer=framer, port=serial.path, baudrate=serial.baud_rate, bytesize=serial.data_bits,
            stopbits=serial.stop_bits, parity=serial.parity, reconnect_delay=0,
        )  # fmt: skip
    elif device.mode == "UDP":
        server = _UdpServer(_NOTHING, address=(host, port))
    elif device.mode == "TLS":
        if tls is None:
            raise ValueError("TLS needs a certificate")
        server = _TlsServer(_NOTHING, framer=framer, address=(host, port), sslctx=tls)
    else:
        server = _TcpServer(_NOTHING, framer=framer, address=(host, port))
    cast(_Listens, server).device = device
    wanted = serial.path if serial is not None else f"{host}:{port}"
    try:
        await server.serve_forever(background=True)
    except RuntimeError as error:  # what pymodbus makes of a port that is taken
        raise OSError(f"cannot listen on {wanted}: it is taken, not there, or not allowed") from error
    return _Running(server, host, serial)


class _Running:
    """A server of pymodbus that listens."""

    def __init__(self, server: ModbusBaseServer, host: str, serial: SerialPort | None) -> None:
        self._server = server
        self.port = 0
        if serial is not None:
            self.address = serial.path
            return
        if isinstance(server, _UdpServer):
            self.port = server.transport.get_extra_info("sockname")[1]
        else:
            self.port = cast(asyncio.Server, server.transport).sockets[0].getsockname()[1]
        self.address = f"{host}:{self.port}"

    async def close(self) -> None:
        await self._server.shutdown()  # type: ignore[no-untyped-call]  # pymodbus leaves it bare


class PseudoTerminal:
    """A serial line without hardware: we are at one end, `address` is the other, to be opened as a serial port."""

    def __init__(self, device: Device, framer: FramerType) -> None:
        self._ours, self._theirs = os.openpty()  # held open, so that one who closes it can come back
        tty.setraw(self._theirs)
        os.set_blocking(self._ours, False)
        self.address = os.ttyname(self._theirs)
        self.port = 0
        self._device = device
        server = _SerialServer(_NOTHING, framer=framer, port=self.address)
        server.device = device
        self._connection = server.callback_new_connection()
        self._loop = asyncio.get_running_loop()
        self._connection.connection_made(cast(asyncio.BaseTransport, self))
        self._loop.add_reader(self._ours, self._readable)
        self._closed = False

    def write(self, data: bytes) -> None:
        """Send, as far as there is room: a line does not wait for one who does not read."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = os.write(self._ours, data)
        if sent < len(data):
            self._device.faults.seen["overrun"] += 1

    def abort(self) -> None:
        """A line cannot be cut from here."""

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._connection.transport = None  # type: ignore[assignment]  # as pymodbus does on close
        self._loop.remove_reader(self._ours)
        os.close(self._ours)
        os.close(self._theirs)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._connection.data_received(os.read(self._ours, _READ_SIZE))


class _Connection(ServerRequestHandler):
    """Takes the place of pymodbus' handler: same frames, our replies."""

    def __init__(self, owner: ModbusBaseServer, device: Device) -> None:
        super().__init__(owner, None, None, None)  # type: ignore[no-untyped-call]  # pymodbus leaves it bare
        self._device = device
        self._heard = 0.0

    def datagram_received(self, data: bytes, addr: tuple[Any, ...] | None) -> None:
        now = self.loop.time()
        if addr is not None or (self._device.mode in BUS and now - self._heard > _SILENCE_S):
            self.recv_buffer = b""  # a datagram is a whole frame, and on a bus a pause ends one
        self._heard = now
        super().datagram_received(data, addr)

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        if self._device.mode in ("TCP", "TLS") and data[2:4].strip(b"\0") and self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()  # no Modbus, and no telling where the next frame begins
            return len(data)
        try:
            used = TransactionManager.callback_data(self, data, addr)
        except ModbusIOException as error:  # a frame all right, but no request
            refusal = ExceptionResponse(error.fcode or 0, ExcCodes.ILLEGAL_FUNCTION, device_id=error.dev_id)
            refusal.transaction_id = error.transaction_id
            self.pdu_send(refusal, addr=addr)
            return len(data)
        except Exception as error:  # noqa: BLE001  # garbage makes pymodbus raise whatever
            logger.debug("garbage received: %s: %r", data.hex(), error)
            return len(data)
        if self.last_pdu is not None:
            self._device.start(self._reply(self.last_pdu, addr))
        return used

    async def _reply(self, pdu: ModbusPDU, addr: tuple[Any, ...] | None) -> None:
        faults = self._device.faults
        reply = await self._device.answer(pdu)
        if reply is None:
            return
        if faults.delay_s:
            faults.seen["delay_s"] += 1
            await asyncio.sleep(faults.delay_s)
        strike = faults.strike(self._device.rng)
        if strike == "wrong_unit":
            reply.dev_id = (reply.dev_id + 1) % 256
        elif strike == "wrong_transaction":
            reply.transaction_id = (reply.transaction_id + 1000) % 65536
        if strike == "disconnect" and self._device.mode not in (*SERIAL, "UDP"):
            if self.transport is not None:
                cast(asyncio.Transport, self.transport).abort()
        elif strike not in ("drop", "disconnect") and self.transport is not None:
            frame = self.framer.buildFrame(reply)
            if strike == "garbage":
                frame = self._device.rng.randbytes(len(frame))
            elif strike == "short":
                frame = frame[: max(1, len(frame) // 2)]
            self.send(frame, addr)


class _Listens:
    """Mixed into a server of pymodbus: its connections are ours."""

    device: Device

    def callback_new_connection(self) -> ServerRequestHandler:
        return _Connection(cast(ModbusBaseServer, self), self.device)


class _TcpServer(_Listens, ModbusTcpServer):
    pass


class _TlsServer(_Listens, ModbusTlsServer):
    pass


class _UdpServer(_Listens, ModbusUdpServer):
    pass


class _SerialServer(_Listens, ModbusSerialServer):
    pass


_NOTHING: Final = SimDevice(0, simdata=[SimData(0, values=[0], datatype=DataType.REGISTERS)])
"""pymodbus wants a device of its own kind; ours answers before it is asked."""
