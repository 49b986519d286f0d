"""What the kinds of sinks share: their client libraries, addresses, the time as text, and plain HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from dmi.errors import ConfigError
from mappers.sdk.sinks.record import SinkRejected, SinkUnavailable

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = [
    "REQUEST_TIMEOUT_S",
    "http_session",
    "load",
    "local_time",
    "masked",
    "post",
    "require",
    "split_address",
    "split_url",
]

REQUEST_TIMEOUT_S: Final = 10.0
_LAST_S: Final = 253_370_764_800
"""The year 9999, which is as far as a date goes."""
MAX_ANSWER_BYTES: Final = 64 * 1024
_UNWANTED: Final = (400, 413, 415, 422)
"""Statuses that say the content is wrong. Others, 401, 403 and 404 among them, say that the target is not ready yet."""


def require(module: str, extra: str, path: str) -> None:
    """Raises:
    ConfigError: The library is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(path, f"needs the library {module}; install kubetwin[{extra}]")


async def load(module: str) -> Any:
    """Import what is about to be used, in a thread: a big library takes a small gateway seconds."""
    return await asyncio.to_thread(importlib.import_module, module)


def local_time(epoch_ms: int) -> str:
    """`YYYY-MM-DD HH:MM:SS` in the machine's time zone, as upstream's mappers write it."""
    seconds = min(max(epoch_ms // 1000, 0), _LAST_S)
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006  # local on purpose


def split_url(url: str, schemes: tuple[str, ...], path: str) -> SplitResult:
    """Parse and check a URL.

    Raises:
        ConfigError: Another scheme, no host, a port that is none, or a password in it.
    """
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ConfigError(path, f"{url!r} is not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(path, "holds a user or password; put them into the mapper's secrets (docs/sinks.md)")
    if parts.scheme not in schemes:
        raise ConfigError(path, f"{url!r} must start with {' or '.join(f'{s}://' for s in schemes)}")
    if not parts.hostname or not port_ok or any(c.isspace() for c in url):
        raise ConfigError(path, f"{url!r} must be of the form {schemes[0]}://host:port")
    return parts


def masked(url: str) -> str:
    """For people: a query may hold a key, so only what tells two of them apart is left of it."""
    shown, mark, query = url.partition("?")
    return f"{shown}?{hashlib.sha256(query.encode()).hexdigest()[:8]}" if mark else url


def split_address(address: str, default_port: int, path: str) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port`.

    Raises:
        ConfigError: It is neither.
    """
    if not address or "@" in address or "/" in address:
        raise ConfigError(path, f"must be host:port, not {'text with @' if '@' in address else repr(address)}")
    parts = split_url(f"tcp://{address}", ("tcp",), path)
    return parts.hostname or "", parts.port or default_port


@asynccontextmanager
async def http_session(headers: Mapping[str, str] | None = None) -> AsyncIterator[ClientSession]:
    """Connections that are kept between requests."""
    await load("aiohttp")
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield session


async def post(
    session: ClientSession,
    url: str,
    data: bytes,
    *,
    content_type: str,
    params: Mapping[str, str] | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> bytes:
    """One POST; the first 64 KiB of the answer's body. A redirect is not followed: it would lose the body.

    Raises:
        SinkUnavailable: No answer, or one that says not now.
        SinkRejected: The content is wrong.
    """
    import aiohttp
    from yarl import URL

    try:
        async with session.post(
            URL(url),
            data=data,
            params=params,
            headers={"Content-Type": content_type},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as answer:
            body = await answer.content.read(MAX_ANSWER_BYTES)
            status = answer.status
    except TimeoutError:
        raise SinkUnavailable(f"no answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise SinkUnavailable(str(error) or type(error).__name__) from error
    if 200 <= status < 300:
        return body
    problem = f"answered {status}: {body[:200].decode(errors='replace')}".rstrip(": ")
    raise SinkRejected(problem) if status in _UNWANTED else SinkUnavailable(problem)
