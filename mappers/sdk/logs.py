"""Logs on standard error: text for people, or one JSON object a line, each with the device it is about."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Final, TextIO

import msgspec

from mappers.sdk.config import LogConfig
from mappers.sdk.context import current_device

__all__ = ["DeviceFilter", "JsonFormatter", "TextFormatter", "set_up_logs"]

_encode: Final = msgspec.json.Encoder().encode


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")} | {
    ord("\r"): r"\r",
    ord("\n"): r"\n",
}
"""What came from a device must not look like a line of its own, nor give orders to a terminal."""


class DeviceFilter(logging.Filter):
    """Gives each record the attribute `device`: what was passed as `extra`, or else the device whose task logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "device"):
            record.device = current_device.get()
        return True


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: [device] message`; the device only where the message does not name it already."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        device = getattr(record, "device", "")
        if device and device not in record.message:
            record.message = f"[{device}] {record.message}"
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and where there is one `device` and
    `error`, a traceback. `protocols` says which mapper it is, where several write into one log."""

    def __init__(self, protocols: Sequence[str]) -> None:
        super().__init__()
        self._protocols = list(protocols)

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "protocols": self._protocols,
        }
        if device := getattr(record, "device", ""):
            fields["device"] = device
        fields["message"] = _utf8(record.getMessage())
        if record.exc_info:
            fields["error"] = _utf8(self.formatException(record.exc_info))
        elif record.exc_text:
            fields["error"] = _utf8(record.exc_text)
        return _encode(fields).decode()


def _utf8(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold: bytes of a file name or a device can bring some."""
    return text.encode("utf-8", "backslashreplace").decode()


def set_up_logs(config: LogConfig, protocols: Sequence[str], *, stream: TextIO | None = None) -> None:
    """Have the root logger write to standard error, or `stream`, and to nothing else. For `app` only."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(DeviceFilter())
    handler.setFormatter(JsonFormatter(protocols) if config.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
