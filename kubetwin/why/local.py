"""What the edge core of this machine says of a device: one HTTP request over its unix socket."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from cloudedge.facts import DeviceFacts
from kubetwin.why.ends import DEFAULT_SOCKET
from kubetwin.why.evidence import EdgeEnd

__all__ = ["clock_ahead_s", "read_edge"]

TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 4 * 1024 * 1024


async def read_edge(path: Path | None, namespace: str, name: str) -> EdgeEnd:
    """`path`: a socket that somebody named, so that its absence is a fault; None: the usual one, if there is one."""
    usual = path is None
    path = path or DEFAULT_SOCKET
    if usual and not await asyncio.to_thread(path.exists):
        return EdgeEnd(absent=f"there is no edge core here ({path}); --edge names its socket")
    return await asyncio.to_thread(_read, path, namespace, name, usual)


def _read(path: Path, namespace: str, name: str, usual: bool) -> EdgeEnd:
    end = EdgeEnd(socket=str(path))
    connection = _UnixConnection(path)
    sent_s = time.time()
    try:
        connection.request("GET", f"/v1/devices/{quote(namespace, safe='')}/{quote(name, safe='')}/path")
        response = connection.getresponse()
        body = response.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return msgspec.structs.replace(end, trouble="there is no such socket: edge core is not running, or has another")
    except PermissionError:
        owner = f"; you are uid {os.getuid()}"
        return msgspec.structs.replace(end, absent=f"{path}: only its owner and group may ask edge core{owner}")
    except ConnectionRefusedError:
        return msgspec.structs.replace(end, trouble="nobody listens: edge core is not running")
    except TimeoutError:
        return msgspec.structs.replace(end, trouble=f"no answer within {TIMEOUT_S:.0f} s: edge core hangs")
    except (OSError, http.client.HTTPException) as error:
        return msgspec.structs.replace(end, trouble=f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        text = " ".join(body[:200].decode(errors="replace").split())
        return msgspec.structs.replace(end, trouble=f"answered {response.status}: {text}")
    try:
        facts = msgspec.json.decode(body, type=DeviceFacts)
    except msgspec.MsgspecError as error:
        what = "" if usual else "; is it edge core's local API?"
        return msgspec.structs.replace(end, trouble=f"answered something else: {error}{what}")
    return msgspec.structs.replace(end, facts=facts, clock_ahead_s=clock_ahead_s(facts.now_ms, sent_s, time.time()))


def clock_ahead_s(edge_ms: int, sent_s: float, seen_s: float) -> float:
    """How far the edge's clock is outside of the time in which it must have answered; 0: it is within."""
    edge_s = edge_ms / 1000
    if edge_s < sent_s - 0.001:  # its milliseconds are cut off
        return edge_s - sent_s
    return max(0.0, edge_s - seen_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
