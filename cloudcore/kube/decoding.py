"""What the API server sends, decoded, however deeply it is nested.

Members without a schema, such as the settings of a device, may be nested as deeply as somebody likes. What is too deep
for the decoder would stall the watch of all objects of the kind; what it just takes cannot be compared or encoded by
who is called a little later.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from cloudcore.kube.objects import key_of

__all__ = ["MAX_DEPTH", "Decoding", "cut", "is_deep"]

logger = logging.getLogger(__name__)

MAX_DEPTH: Final = 200
"""Of an answer or an event. Kinds with a schema stay far below; settings of devices are flat."""
MAX_NAMED: Final = 256
_TOKEN: Final = re.compile(rb'[][{}]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A bracket, or a text, which may have brackets in it."""
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
T = TypeVar("T")


class Decoding:
    """Decodes for one client, and says once of each kind of request that something was left out."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def decode(self, body: bytes, what: str, decoder: msgspec.json.Decoder[T]) -> T:
        """`what` was asked. What is nested deeper than `MAX_DEPTH` is null.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError: It is no JSON.
        """
        if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
            return decoder.decode(body)
        try:
            value = decoder.decode(body)
        except RecursionError:
            pass
        else:
            if not is_deep(value, MAX_DEPTH):
                return value
        value = decoder.decode(cut(body))
        about = f"{what} {key_of(found)}" if (found := getattr(value, "object", None)) else what
        if about not in self._named and len(self._named) < MAX_NAMED:
            self._named.add(about)
            logger.warning("%s: nested deeper than %d levels; what is below is taken for null", about, MAX_DEPTH)
        return value


def cut(body: bytes) -> bytes:
    """JSON with null in place of everything deeper than `MAX_DEPTH`."""
    parts: list[bytes] = []
    depth = kept = 0
    for found in _TOKEN.finditer(body):
        step = _STEP.get(body[found.start()], 0)
        depth += step
        if step > 0 and depth == MAX_DEPTH + 1:
            parts += (body[kept : found.start()], b"null")
        elif step < 0 and depth == MAX_DEPTH:
            kept = found.end()
        if depth > MAX_DEPTH:
            kept = len(body)  # of what never ends there is nothing to keep
    parts.append(body[kept:])
    return b"".join(parts)


def is_deep(value: Any, levels: int) -> bool:
    """Whether JSON, decoded, is nested deeper than that. A Struct counts as its members."""
    level = list(msgspec.structs.astuple(value)) if isinstance(value, Struct) else [value]
    level = [outer for outer in level if isinstance(outer, dict | list)]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
