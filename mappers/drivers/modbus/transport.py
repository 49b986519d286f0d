"""What a Modbus line runs over: one open socket or serial port, and one request at a time on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from dmi.types import DeviceId
from mappers.drivers.modbus.framing import Expected, Framing, MoreNeeded
from mappers.drivers.modbus.pdu import BadReply, reply_size
from mappers.drivers.modbus.settings import ModbusConfig
from mappers.drivers.modbus.transport_open import FRAMINGS, connect
from mappers.sdk import DeviceProtocolError, DeviceTimeout, DeviceUnreachable

__all__ = ["Owed", "Transport", "open_transport"]

logger = logging.getLogger(__name__)

TURNAROUND_S: Final = 0.1
"""Rest after a broadcast, for the devices to act on it (over Serial Line V1.02, 2.4.1: 100 to 200 ms)."""

CLOSE_DEADLINE_S: Final = 0.3

_READS: Final = frozenset({1, 2, 3, 4})


Owed = dict[int, tuple[float, Expected]]
"""Unit → until when, in the loop's time, it may still answer a request that was given up, and how. Kept
only where replies carry no number: there such an answer could be taken for the one to the next request. For a while
after that, a reply to a read must at least have the length that was asked for."""

LATE_S: Final = 0.5
"""How late after its timeout a reply may be, at least."""
WARY_S: Final = 30.0


class Transport(asyncio.DatagramProtocol, asyncio.Protocol):
    """Sends a request and finds its reply in what arrives. The line sees to it that nobody asks beside another."""

    def __init__(
        self,
        name: str,
        framing_: Framing,
        broken: Callable[[str], None],
        *,
        datagrams: bool = False,
        owed: Owed | None = None,
    ) -> None:
        self.name = name
        self.made = asyncio.Event()
        """The connection is there."""
        self._ended = asyncio.Event()
        self._forgiven = asyncio.Event()
        """A late answer has come, or never will."""
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
        self._sent = b""
        """The frame of the request under way, until its echo has come."""
        self._echoes: bool | None = None
        """Whether the line gives back what is sent, as some two-wire RS-485 adapters do; None: not known yet."""
        self._owed: Owed = {} if owed is None else owed
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
        expected = self._expect(unit, pdu)
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
                    self._owed[unit] = (
                        started + timeout_s + max(timeout_s, LATE_S),
                        Expected(unit, pdu[0], size=reply_size(pdu)),
                    )

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
        if not isinstance(sender, asyncio.Transport) or sender.get_extra_info("ssl_object") is None:
            sender.close()
            return
        if not sender.is_closing():  # asyncio did so when connecting ended in this moment; twice would undo it
            sender.close()
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            sender.abort()

    def owes(self, unit: int) -> bool:
        """Whether a late answer of the unit may still come."""
        return self._owed_s(unit) > 0

    async def settle(self, unit: int) -> None:
        """Wait until no late answer of the unit can come any more. To be called before a turn on the line is taken, so
        that others use it meanwhile."""
        while (rest_s := self._owed_s(unit)) > 0:
            self._forgiven.clear()
            try:
                async with asyncio.timeout(rest_s):
                    await self._forgiven.wait()
            except TimeoutError:
                return

    # the request under way

    def _send(self, device_id: DeviceId, unit: int, pdu: bytes) -> None:
        if self._lost or self._sender is None:
            raise DeviceUnreachable(device_id, self._lost or "not connected")
        self._buffer = self._strays = b""
        frame = self._framing.encode(unit, self._number, pdu)
        # An echo of a read cannot be taken for its reply, that of a write can: there it must be known that it comes.
        self._sent = frame if not self._framing.numbered and (self._echoes or pdu[0] in _READS) else b""
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
        if (rest_s := self._owed_s(unit)) > 0:
            try:
                await self._receive(self._owed[unit][1], rest_s)
                logger.debug("%s: unit %d answered too late", self.name, unit)
            except (TimeoutError, BadReply, ConnectionError):
                pass
            self._pay(unit)

    def _pay(self, unit: int) -> None:
        """The late answer has come, or the time for it is over."""
        until, late = self._owed[unit]
        self._owed[unit] = (min(until, asyncio.get_running_loop().time()), late)

    def _expect(self, unit: int, request: bytes) -> Expected:
        if self._framing.numbered:
            return Expected(unit, request[0], self._number)
        if unit in self._owed and asyncio.get_running_loop().time() < self._owed[unit][0] + WARY_S:
            return Expected(unit, request[0], size=reply_size(request))
        self._owed.pop(unit, None)
        return Expected(unit, request[0])

    def _owed_s(self, unit: int) -> float:
        """Seconds for which a late answer of the unit may still come."""
        if self._lost or unit not in self._owed:
            return 0.0
        return self._owed[unit][0] - asyncio.get_running_loop().time()

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
        if self._sent and (at := self._strays.find(self._sent)) >= 0:
            self._buffer = self._strays = self._strays[at + len(self._sent) :]
            self._sent, self._echoes = b"", True
        try:
            found = self._framing.find(self._buffer, self._expected)
        except BadReply as error:
            self._reply.set_exception(error)
            return
        if not isinstance(found, MoreNeeded):
            if self._sent:
                self._echoes = False
            self._reply.set_result(found)
        else:
            self._buffer = self._buffer[found.skip :][-4 * self._framing.max_frame :]

    def _forgive(self, data: bytes) -> None:
        """Nobody is asked: a late answer, perhaps; then it is no longer owed."""
        logger.debug("%s: received unasked: %s", self.name, data[:64].hex())
        for unit, (_, late) in self._owed.items():
            if self.owes(unit) and not isinstance(self._framing.find(data, late), MoreNeeded):
                self._pay(unit)
                self._forgiven.set()

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._forgiven.set()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError(reason))
        self._broken(reason)


@asynccontextmanager
async def open_transport(
    device_id: DeviceId, config: ModbusConfig, broken: Callable[[str], None], *, owed: Owed | None = None
) -> AsyncIterator[Transport]:
    """Open what `config` says. `broken` is called with the reason when it is lost. `owed` is what an earlier transport
    of the same line left: closing a serial port keeps no device from answering.

    Raises:
        DeviceUnreachable: Nobody there, or not within the timeout.
        ConfigError: It can never work as it is declared.
    """
    name = config.serial_name or "{}:{}".format(*config.endpoint)
    transport = Transport(name, FRAMINGS[config.mode], broken, datagrams=config.mode == "UDP", owed=owed)
    try:
        await connect(transport, device_id, config)
        yield transport
    finally:
        await transport.close()
