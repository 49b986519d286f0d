"""Edge core's local API, asked on the machine it runs on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

__all__ = ["EdgeAway", "edge_get", "history_path"]

TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 16 * 1024 * 1024


class EdgeAway(Exception):
    """It did not answer, or with an error; the text says what."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(TIMEOUT_S)
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


def history_path(namespace: str, name: str, *, property_name: str, since_ms: int, limit: int) -> str:
    query = {"property": property_name, "since": since_ms, "limit": limit}
    filled = urlencode({key: value for key, value in query.items() if value})
    return f"/v1/devices/{quote(namespace, safe='')}/{quote(name, safe='')}/history?{filled}"


def edge_get(path: Path, target: str) -> Mapping[str, Any]:
    """The JSON object at a path. Blocking.

    Raises:
        EdgeAway: No answer, or an error.
    """
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        raise EdgeAway(f"edge core does not answer at {path}: {reason}") from error
    finally:
        connection.close()
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise EdgeAway(f"what answers at {path} is not edge core: {response.status} {response.reason}")
    if response.status != http.client.OK:
        raise EdgeAway(str(answer.get("error") or answer.get("message") or f"edge core answered {response.status}"))
    return answer
