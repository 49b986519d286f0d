"""A client of edge core's local API, as small as curl's part in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec


async def raw(socket: Path, request: bytes) -> bytes:
    """Send bytes, and read until the server closes."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(15):
            return await reader.read()
    finally:
        writer.close()


async def get_text(socket: Path, target: str, method: str = "GET") -> tuple[int, str]:
    answer = await raw(socket, f"{method} {target} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def get(socket: Path, target: str) -> tuple[int, Any]:
    status, body = await get_text(socket, target)
    return status, msgspec.json.decode(body)
