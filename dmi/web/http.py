"""HTTP/1.1 on one connection: requests in, answers out, with a cap on everything a client declares and a deadline on
everything it may be slow with.

h11 reads and writes the protocol; it is 0.4 MB in memory, where aiohttp's server would be 16.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from ssl import SSLObject
from typing import Final

import h11
import msgspec
from msgspec import Struct

__all__ = [
    "Answer",
    "HttpConnection",
    "HttpError",
    "Limits",
    "Peer",
    "Request",
    "Response",
    "as_json",
    "as_text",
    "encode",
    "json_response",
]

logger = logging.getLogger(__name__)

MAX_HEAD: Final = 16 * 1024
"""Bytes of request line and headers together."""
MAX_BODY: Final = 64 * 1024
_READ: Final = 16 * 1024
_CORRELATION: Final = b"x-correlation-id"

encode: Final = msgspec.json.Encoder().encode


class Limits(Struct, frozen=True):
    """Seconds a client may take. Upstream has 10 for reading and for writing."""

    idle_s: float = 10.0
    """Until a request begins."""
    read_s: float = 10.0
    """From its first byte to its last."""
    answer_s: float = 10.0
    """For the device."""
    write_s: float = 10.0
    """Until the client has taken the answer."""
    linger_s: float = 1.0
    """For a refused client to stop sending: closed on at once, it might not see why."""
    one_request: bool = False
    """Close after each answer: a client that has asked what it wanted does not keep others out."""


class Peer(Struct, frozen=True, eq=False):
    """Who is at the other end of a connection."""

    address: str = ""
    tls: SSLObject | None = None
    """Its certificate can be asked of it; None: plain HTTP."""


class Request(Struct, frozen=True):
    """A complete request."""

    method: str
    path: str
    """Still percent-encoded, without the query."""
    host: str
    """From the target if that is a whole URL, or else from the `Host` header; empty: an HTTP/1.0 client named none."""
    headers: Mapping[str, str]
    """By lower-case name; the last of several."""
    query: str = ""
    """What follows the `?`, still percent-encoded."""
    body: bytes = b""
    params: Mapping[str, str] = {}
    """What stands in the path in the place of `{name}` of its route, decoded; it may hold any character."""
    peer: Peer = Peer()


class Response(Struct, frozen=True):
    """An answer. A generator as body is sent in chunks as it comes."""

    status: int
    body: bytes | AsyncGenerator[bytes, None]
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class HttpError(Exception):
    """Answered as the server's `refuse` writes it."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def as_text(error: HttpError) -> Response:
    """An error in words, as upstream's mappers answer them."""
    body = (error.message + "\n").encode("utf-8", "backslashreplace")
    headers = (*error.headers, ("X-Content-Type-Options", "nosniff"))
    return Response(error.status, body, "text/plain; charset=utf-8", headers)


def as_json(error: HttpError) -> Response:
    """An error as `{"error": …}`."""
    text = error.message.encode("utf-8", "backslashreplace").decode()
    return Response(error.status, encode({"error": text}), headers=error.headers)


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, encode(value))


Answer = Callable[[Request], Awaitable[Response]]


class _ClientGone(Exception):
    """The client closed, or sent nothing more."""


class HttpConnection:
    """One client, until it leaves, errs, or is too slow. `busy` while a request is being read or answered."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Answer,
        limits: Limits,
        count: Callable[[int], None],
        refuse: Callable[[HttpError], Response] = as_text,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._limits = limits
        self._count = count
        self._refuse = refuse
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        address = writer.get_extra_info("peername")
        host = str(address[0]) if isinstance(address, tuple) else ""  # a unix socket has none
        self._peer = Peer(host, writer.get_extra_info("ssl_object"))
        self.busy = False
        self.last = limits.one_request
        """Set from outside: close after the answer under way."""

    async def run(self) -> None:
        """Answer until the connection is to be closed. Closing it is the caller's."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except (_ClientGone, ConnectionError, TimeoutError):
            pass  # nobody is there to be told

    async def _exchange(self) -> bool:
        """Answer one request; True if another may follow on this connection."""
        self.busy = False
        await self._first_byte()
        self.busy = True
        head: h11.Request | None = None
        try:
            try:
                async with asyncio.timeout(self._limits.read_s):
                    head = await self._head()
                    request = _request(head, await self._body(head), self._peer)
            except TimeoutError:
                raise HttpError(408, f"the request was not complete within {self._limits.read_s:g} s") from None
            except h11.RemoteProtocolError as error:
                raise HttpError(error.error_status_hint, f"not understood: {error}") from None
            response = await self._answered(request)
        except HttpError as error:
            response = self._refuse(error)
        await self._send(response, head)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return not self.last
        if self._http.their_state in (h11.SEND_BODY, h11.ERROR):
            await self._linger()
        return False

    # reading

    async def _first_byte(self) -> None:
        if not self._http.trailing_data[0]:
            async with asyncio.timeout(self._limits.idle_s):
                await self._feed()

    async def _feed(self) -> None:
        data = await self._reader.read(_READ)
        if not data and self._http.their_state in (h11.IDLE, h11.DONE):
            raise _ClientGone
        self._http.receive_data(data)

    async def _next_event(self) -> h11.Event:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise _ClientGone
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # h11's sentinels are types, the two there are were excluded
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            await self._feed()

    async def _head(self) -> h11.Request:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            raise _ClientGone
        if event.http_version not in (b"1.0", b"1.1"):
            raise HttpError(505, "this is HTTP/1.1")
        return event

    async def _body(self, head: h11.Request) -> bytes:
        declared = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
        body = bytearray()
        if declared <= MAX_BODY:
            while isinstance(event := await self._next_event(), h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    break
            else:
                return bytes(body)
        raise HttpError(413, f"the body is larger than {MAX_BODY} bytes")

    # answering

    async def _answered(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._limits.answer_s):
                return await self._answer(request)
        except TimeoutError:
            raise HttpError(
                504, f"no result within {self._limits.answer_s:g} s; a write may still take effect"
            ) from None
        except HttpError:
            raise
        except Exception:
            logger.exception("HTTP API: %s %r failed", request.method, request.path)
            raise HttpError(500, "internal error; the log says more") from None

    async def _send(self, response: Response, head: h11.Request | None) -> None:
        self._count(response.status)
        texts = [
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Type", response.content_type),
            ("Cache-Control", "no-store"),
            *response.headers,
        ]
        if isinstance(response.body, bytes):
            texts.append(("Content-Length", str(len(response.body))))
        if self.last or self._http.their_state is not h11.DONE:
            texts.append(("Connection", "close"))
        headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in texts]
        if head is not None:
            headers += [(b"X-Correlation-ID", value) for name, value in head.headers if name == _CORRELATION][:1]
        reason = HTTPStatus(response.status).phrase
        start = h11.Response(status_code=response.status, headers=headers, reason=reason)
        async with asyncio.timeout(self._limits.write_s):
            await self._write(start)
            if head is None or head.method != b"HEAD":
                await self._send_body(response.body)
            await self._write(h11.EndOfMessage())

    async def _send_body(self, body: bytes | AsyncGenerator[bytes, None]) -> None:
        if isinstance(body, bytes):
            await self._write(h11.Data(data=body))
            return
        async with aclosing(body):
            async for chunk in body:
                await self._write(h11.Data(data=chunk))

    async def _write(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    async def _linger(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()
        async with asyncio.timeout(self._limits.linger_s):
            while await self._reader.read(_READ):
                pass


def _request(head: h11.Request, body: bytes, peer: Peer) -> Request:
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    target, host = head.target.decode("ascii"), headers.get("host", "")
    for scheme in ("http://", "https://"):  # RFC 9112, 3.2.2
        if target.lower().startswith(scheme):
            host, slash, rest = target[len(scheme) :].partition("/")
            target = slash + rest or "/"
    path, _, query = target.partition("?")
    return Request(head.method.decode("ascii"), path, host, headers, query, body, peer=peer)
