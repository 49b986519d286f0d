"""What a Modbus line runs over: one open socket or serial port, and one request at a time on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from dmi.types import DeviceId
from mappers.drivers.modbus.framing import Expected, Framing, MoreNeeded
from mappers.drivers.modbus.pdu import BadReply
from mappers.drivers.modbus.settings import ModbusConfig
from mappers.drivers.modbus.transport_open import FRAMINGS, connect
from mappers.sdk import DeviceProtocolError, DeviceTimeout, DeviceUnreachable

__all__ = ["Transport", "open_transport"]

logger = logging.getLogger(__name__)

TURNAROUND_S: Final = 0.1
"""Rest after a broadcast, for the devices to act on it (over Serial Line V1.02, 2.4.1: 100 to 200 ms)."""

CLOSE_DEADLINE_S: Final = 0.3


class Transport(asyncio.DatagramProtocol, asyncio.Protocol):
    """Sends a request and finds its reply in what arrives. The line sees to it that nobody asks beside another."""

    def __init__(self, name: str, framing_: Framing, broken: Callable[[str], None], *, datagrams: bool = False) -> None:
        self.name = name
        self.made = asyncio.Event()
        """The connection is there."""
        self._ended = asyncio.Event()
        self._framing = framing_
        self._broken = broken
        self._sender: asyncio.BaseTransport | None = None
        self._datagrams = datagrams
        self._buffer = b""
        self._strays = b""
        """What arrived for the request under way and was not its reply."""
        self._expected: Expected | None = None
        self._reply: asyncio.Future[bytes] | None = None
        self._number = 0
        self._owed: dict[int, tuple[float, int]] = {}
        """Unit → until when it may still answer a request that was given up, and of which function. Only where replies
        carry no number: there such an answer could be taken for the one to the next request."""
        self._lost = ""

    async def ask(self, device_id: DeviceId, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """Send a request; the PDU of its reply, which has the request's function or is an exception.

        Raises:
            DeviceTimeout: No reply in time, or none that makes sense.
            DeviceProtocolError: The reply is none to this request.
            DeviceUnreachable: The connection is lost.
        """
        loop = asyncio.get_running_loop()
        await self._wait_owed(unit)
        self._number = self._number % 0xFFFF + 1
        expected = Expected(unit, pdu[0], self._number if self._framing.numbered else 0)
        started, answered = loop.time(), False
        try:
            self._send(device_id, unit, pdu)
            reply = await self._receive(expected, timeout_s)
            answered = True
            return reply
        except TimeoutError as error:
            raise DeviceTimeout(device_id, self._silence(timeout_s)) from error
        except BadReply as error:
            answered = True
            logger.debug("device %s: received %s", device_id, self._strays.hex())
            raise DeviceProtocolError(device_id, f"the reply makes no sense: {error}") from error
        except ConnectionError as error:
            raise DeviceUnreachable(device_id, str(error)) from error
        finally:
            if not answered:
                if self._strays:
                    logger.debug("device %s: received %s", device_id, self._strays.hex())
                if not self._framing.numbered:
                    self._owed[unit] = (started + 2 * timeout_s, pdu[0])

    async def broadcast(self, device_id: DeviceId, pdu: bytes) -> None:
        """Send a request to unit 0 of a serial line: every device acts on it, and none answers.

        Raises:
            DeviceUnreachable: The connection is lost.
        """
        self._send(device_id, 0, pdu)
        await asyncio.sleep(TURNAROUND_S)

    async def close(self) -> None:
        """Close; a peer that does not take part in the end of a TLS connection is not waited for long."""
        self._lost = self._lost or "closed"
        sender = self._sender
        if sender is None:
            return
        sender.close()
        if not isinstance(sender, asyncio.Transport) or sender.get_extra_info("ssl_object") is None:
            return
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            sender.abort()

    # the request under way

    def _send(self, device_id: DeviceId, unit: int, pdu: bytes) -> None:
        if self._lost or self._sender is None:
            raise DeviceUnreachable(device_id, self._lost or "not connected")
        self._buffer = self._strays = b""
        frame = self._framing.encode(unit, self._number, pdu)
        if self._datagrams:
            cast("asyncio.DatagramTransport", self._sender).sendto(frame)
        else:
            cast("asyncio.Transport", self._sender).write(frame)

    async def _receive(self, expected: Expected, timeout_s: float) -> bytes:
        self._expected, self._reply = expected, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reply
        finally:
            self._expected = self._reply = None

    async def _wait_owed(self, unit: int) -> None:
        """Wait for the late answer to what was given up, for as long as it may still come."""
        until, function = self._owed.get(unit, (0.0, 0))
        rest_s = until - asyncio.get_running_loop().time()
        if rest_s > 0 and not self._lost:
            try:
                await self._receive(Expected(unit, function), rest_s)
                logger.debug("%s: unit %d answered too late", self.name, unit)
            except (TimeoutError, BadReply, ConnectionError):
                pass
        self._owed.pop(unit, None)

    def _silence(self, timeout_s: float) -> str:
        if self._strays:
            return (
                f"no reply that makes sense within {timeout_s * 1000:.0f} ms, only {len(self._strays)} bytes of others"
            )
        return f"no reply within {timeout_s * 1000:.0f} ms"

    # what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sender = transport
        self._datagrams = hasattr(transport, "sendto")  # Python 3.11 knows no DatagramTransport of its own
        self.made.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        if self._lost:
            return
        self._lose(f"connection lost: {exc}" if exc is not None else "the other end closed the connection")

    def error_received(self, exc: Exception) -> None:
        """UDP: nobody listens there."""
        self._lose(f"connection lost: {exc}")

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:  # noqa: ARG002  # it is connected
        self._buffer = b""  # a datagram is a whole frame
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._strays = (self._strays + data)[-2 * self._framing.max_frame :]
        if self._expected is None or self._reply is None or self._reply.done():
            self._forgive(data)
            return
        self._buffer += data
        try:
            found = self._framing.find(self._buffer, self._expected)
        except BadReply as error:
            self._reply.set_exception(error)
            return
        if isinstance(found, MoreNeeded):
            self._buffer = self._buffer[found.skip :][-4 * self._framing.max_frame :]
        else:
            self._reply.set_result(found)

    def _forgive(self, data: bytes) -> None:
        """Nobody is asked: a late answer, perhaps; then it is no longer owed."""
        logger.debug("%s: received unasked: %s", self.name, data[:64].hex())
        for unit, (_, function) in list(self._owed.items()):
            if not isinstance(self._framing.find(data, Expected(unit, function)), MoreNeeded):
                del self._owed[unit]

    def _lose(self, reason: str) -> None:
        self._lost = reason
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError(reason))
        self._broken(reason)


@asynccontextmanager
async def open_transport(
    device_id: DeviceId, config: ModbusConfig, broken: Callable[[str], None]
) -> AsyncIterator[Transport]:
    """Open what `config` says. `broken` is called with the reason when it is lost.

    Raises:
        DeviceUnreachable: Nobody there, or not within the timeout.
        ConfigError: It can never work as it is declared.
    """
    name = config.serial_name or "{}:{}".format(*config.endpoint)
    transport = Transport(name, FRAMINGS[config.mode], broken, datagrams=config.mode == "UDP")
    try:
        await connect(transport, device_id, config)
        yield transport
    finally:
        await transport.close()
