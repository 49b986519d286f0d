"""One line for one record: what peers say gets into the log, and must not look like lines of ours."""

from __future__ import annotations

import logging
import sys
from typing import Final

__all__ = ["OneLine", "log_to_stderr"]

_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if code != 9
} | {10: "\\n", 13: "\\r"}
"""Control characters, ends of lines, and what turns the direction of writing around."""


class OneLine(logging.Formatter):
    """Escapes control characters in messages; tracebacks, which are ours, keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's
        return super().formatMessage(record).translate(_ESCAPES)


def log_to_stderr(level: int, layout: str, *, force: bool = False) -> None:
    """Set up the process's log. `force`: in the place of what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(layout))
    logging.basicConfig(level=level, handlers=[handler], force=force)
