"""The string formats that Kubernetes checks. Others, int32 among them, are accepted without a look, as it does."""

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime
from typing import Final
from urllib.parse import urlsplit

_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_DURATION: Final = re.compile(
    r"[+-]?(0|(\d+(\.\d*)?|\.\d+)\s*[A-Za-zµμ]+(\s*(\d+(\.\d*)?|\.\d+)\s*[A-Za-zµμ]+)*)"
    r"|P(?=.)(\d+[YMWD])*(T(\d+(\.\d+)?[HMS])+)?"
)
_HOSTNAME: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-])([0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")


def fits(format_: str, text: str) -> bool:
    """Whether the text has the format; true for formats that are not known."""
    check = _CHECKS.get(format_.replace("-", ""))
    if check is None:
        return True
    try:
        return check(text) is not False
    except (ValueError, binascii.Error):
        return False


def _date_time(text: str) -> bool:
    return _DATE_TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text.upper().replace("Z", "+00:00")))


_CHECKS: Final[dict[str, Callable[[str], object]]] = {
    "byte": lambda text: base64.b64decode(text, validate=True) is not None,
    "cidr": lambda text: "/" in text and bool(ipaddress.ip_interface(text)),
    "date": date.fromisoformat,
    "datetime": _date_time,
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "email": lambda text: _EMAIL.fullmatch(text) is not None,
    "hostname": lambda text: _HOSTNAME.fullmatch(text) is not None,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "mac": lambda text: _MAC.fullmatch(text) is not None,
    "uri": lambda text: bool(urlsplit(text).scheme or text.startswith("/")),
    "uuid": uuid.UUID,
}
