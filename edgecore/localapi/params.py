"""What stands behind the `?` of a request, checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import parse_qsl

from dmi.web.http import HttpError

__all__ = ["read_limit", "read_query", "read_since"]

_MAX_FIELDS: Final = 16
_AGO: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def read_query(query: str, known: Collection[str]) -> dict[str, str]:
    """
    Raises:
        HttpError: 400: not percent-encoded UTF-8, or a parameter that is unknown or given twice.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise HttpError(400, f"the query cannot be read: {error}") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise HttpError(400, f"parameter {name[:64]!r} is not one of {', '.join(sorted(known))}")
        if name in values:
            raise HttpError(400, f"parameter {name!r} is given twice")
        values[name] = value
    return values


def read_limit(values: Mapping[str, str], *, default: int, most: int) -> int:
    """
    Raises:
        HttpError: 400: no number from 1 to `most`.
    """
    text = values.get("limit", "")
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most:
        return int(text)
    raise HttpError(400, f"limit={text[:64]!r} is no number from 1 to {most}")


def read_since(values: Mapping[str, str], *, now_ms: int) -> int:
    """Epoch milliseconds, given so, or as a time ago: `90s`, `10m`, `2h`, `1d`.

    Raises:
        HttpError: 400: neither.
    """
    text = values.get("since", "")
    if not text:
        return 0
    if ago := _AGO.fullmatch(text):
        return max(now_ms - int(ago[1]) * _UNIT_MS[ago[2]], 0)
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    raise HttpError(400, f"since={text[:64]!r} is neither epoch milliseconds nor a time ago such as 10m")
