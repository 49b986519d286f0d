"""Where log lines go: standard error, one line each, for whoever supervises the process."""

from __future__ import annotations

import logging

from dmi.log_lines import log_to_stderr

__all__ = ["set_up_logs"]


def set_up_logs(level: int) -> None:
    log_to_stderr(level, "%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True)
    logging.getLogger("picows").setLevel(logging.WARNING)
