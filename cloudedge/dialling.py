"""Makes a connection to CloudHub: TCP, TLS and the upgrade, with the headers that upstream's edge core sends."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast

from cloudedge.connection import Connection
from cloudedge.errors import ConnectionRefused, without_frames
from cloudedge.lean import postponed_imports
from cloudedge.message import MAX_MESSAGE_BYTES

with postponed_imports():
    from picows import WSError, WSInvalidStatusError, WSListener, ws_connect

__all__ = ["PROJECT_ID", "connect"]

PROJECT_ID: Final = "e632aba927ea4ac2b575ec1603d56f10"
"""Upstream's default; informational."""
_PING_IDLE_S: Final = 10.0
_SAID_BYTES: Final = 300
"""Of an answer that is not ours to trust, in logs and in `kubetwin why`."""


async def connect(
    url: str,
    *,
    node: str,
    ssl_context: ssl.SSLContext,
    project_id: str = PROJECT_ID,
    timeout_s: float = 30.0,
    pong_timeout_s: float | None = None,
) -> Connection:
    """Dial CloudHub as `node`. `url` is `wss://host:port`; the path is upstream's.

    With `pong_timeout_s` a ping goes out after ten seconds (or after `pong_timeout_s`, if longer) without a word, and
    a cloud that leaves it unanswered for `pong_timeout_s` counts as gone: how a path that fell silent is noticed.

    Raises:
        ConnectionRefused: No connection, no TLS, or no upgrade; says which.
    """
    path = f"{url.rstrip('/')}/{project_id}/{node}/events"
    connection: WSListener | None = None
    opened: list[Connection] = []
    given_up = False

    def note(there: Connection) -> None:
        opened.append(there)
        if given_up:  # picows waits on for the upgrade when its caller has stopped
            there.abort()

    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await ws_connect(
                lambda: Connection(url, note),
                path,
                ssl_context=ssl_context,
                websocket_handshake_timeout=timeout_s,
                max_frame_size=MAX_MESSAGE_BYTES,
                max_redirects=0,
                enable_auto_pong=False,  # we answer, as long as the answers are read
                enable_auto_ping=pong_timeout_s is not None,
                auto_ping_idle_timeout=max(_PING_IDLE_S, pong_timeout_s or 0.0),
                auto_ping_reply_timeout=pong_timeout_s or 0.0,
                extra_headers={"node_id": node, "project_id": project_id, "ConnectionUse": "msg"},
            )
    except TimeoutError as error:
        raise ConnectionRefused(f"{url}: no answer within {timeout_s:g} s") from without_frames(error)
    except ssl.SSLError as error:  # before OSError, which it is a kind of
        raise ConnectionRefused(f"{url}: TLS: {error}") from without_frames(error)
    except WSInvalidStatusError as error:
        raise ConnectionRefused(f"{url}: {_answer(error)}") from without_frames(error)
    except (OSError, WSError) as error:
        raise ConnectionRefused(f"{url}: {error}") from without_frames(error)
    finally:
        given_up = connection is None
        for there in opened if given_up else ():  # cancelled in the moment it came
            there.abort()
    if connection is None:  # closed between TLS and upgrade, which is how a TLS 1.3 server refuses our certificate
        raise ConnectionRefused(f"{url}: closed before the upgrade; is the certificate of this cloud's CA?")
    return cast(Connection, connection)


def _answer(error: WSInvalidStatusError) -> str:
    """What there was in place of the upgrade. A cloud says in the body why it does not let a node in."""
    if error.response is None:
        return str(error)
    said = " ".join((error.raw_body or b"")[:_SAID_BYTES].decode("utf-8", "replace").split())
    return f"answered {error.response.status.value}" + (f" {said!r}" if said else "")
