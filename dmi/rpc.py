"""What client and server side of DMI share: addresses, channel options, deadlines, and errors ⇄ gRPC status codes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import grpc
import grpc.aio

from dmi.errors import (
    ConfigError,
    ConversionError,
    DmiError,
    Overloaded,
    PeerRefused,
    PeerTimeout,
    PeerUnavailable,
    UnknownDevice,
    UnknownModel,
    UnknownProperty,
)

__all__ = [
    "CALL_TIMEOUT_S",
    "EDGECORE_KEY",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_BYTES",
    "PARTIAL_KEY",
    "REASON_KEY",
    "code_for",
    "open_channel",
    "refusal",
    "rpc_errors",
    "unix_target",
]

CALL_TIMEOUT_S: Final = 10.0
"""Upstream's edge core gives a mapper 10 s from dialling (DMI contract 1.3)."""

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""What grpc-go takes by default on both ends (DMI contract 1.3)."""

REASON_KEY: Final = "kubetwin-reason-bin"
"""Call metadata of `ReportDeviceStates`: why the device is in that state, UTF-8. DMI has no field for it, and servers
ignore metadata they do not know."""

MAX_REASON_BYTES: Final = 4096

EDGECORE_KEY: Final = "kubetwin-edgecore"
"""Initial metadata of the answer to `MapperRegister`: the edge core is ours, none of the stock one's limits holds.
Clients ignore metadata they do not know."""
PARTIAL_KEY: Final = "kubetwin-partial"
"""Beside it: not all of the set fitted into the answer. What the mapper has beyond it stays until it is told."""

_CODES: Final[dict[type[Exception], grpc.StatusCode]] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    ConversionError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownDevice: grpc.StatusCode.NOT_FOUND,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    UnknownProperty: grpc.StatusCode.NOT_FOUND,
    PeerUnavailable: grpc.StatusCode.UNAVAILABLE,
    PeerRefused: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DmiError: grpc.StatusCode.INTERNAL,
}

_UNREACHED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def code_for(error: Exception) -> grpc.StatusCode:
    """The status code a server answers an exception with: the nearest class of the table."""
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), grpc.StatusCode.INTERNAL)


def refusal(error: Exception, peer: str) -> PeerUnavailable | PeerRefused:
    """What a caller sees of an exception that a handler raised."""
    return _peer_error(code_for(error), str(error) if isinstance(error, DmiError) else repr(error), peer)


@contextmanager
def rpc_errors(peer: str) -> Iterator[None]:
    """Turn gRPC failures raised in the block into `PeerUnavailable` and `PeerRefused`, naming `peer`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _peer_error(error.code(), error.details() or "no details", peer) from error


def _peer_error(code: grpc.StatusCode, details: str, peer: str) -> PeerUnavailable | PeerRefused:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerTimeout(f"{peer}: {details}")
    if code in _UNREACHED:
        return PeerUnavailable(f"{peer}: {details}")
    return PeerRefused(code.name, f"{peer}: {details}")


def unix_target(socket_path: str | Path) -> str:
    """gRPC reads a URI, in which a path may have no `%`, `#` or `?` of its own."""
    return f"unix:{quote(os.fspath(Path(socket_path).absolute()))}"


def open_channel(socket_path: str | Path) -> grpc.aio.Channel:
    """A channel to a unix socket that lives as long as the peer does. It reconnects within a second: grpc's own default
    of up to two minutes would leave a restarted peer alone for that long.
    """
    return grpc.aio.insecure_channel(
        unix_target(socket_path),
        options=(
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ),
    )
