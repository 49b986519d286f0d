"""Logs: one line a record, the device with it, whatever a device puts into a message."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mappers.sdk.config import LogConfig
from mappers.sdk.context import current_device
from mappers.sdk.logs import JsonFormatter, TextFormatter, set_up_logs

SetUp = Callable[[LogConfig], io.StringIO]


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def into_text(config: LogConfig) -> io.StringIO:
        stream = io.StringIO()
        set_up_logs(config, ["modbus", "virtual"], stream=stream)
        return stream

    yield into_text
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_json_line_carries_the_device_of_its_task(set_up: SetUp) -> None:
    stream = set_up(LogConfig(format="json"))

    async def work(device: str) -> None:
        current_device.set(device)
        await asyncio.create_task(asyncio.sleep(0))
        logging.getLogger("driver").warning("lost: %s", "no reply")

    await asyncio.gather(work("plant/a"), work("plant/b"))
    logging.getLogger("mapper").info("outside")
    logging.getLogger("driver").warning("told", extra={"device": "plant/c"})
    first, second, outside, told = lines(stream)
    assert {first["device"], second["device"]} == {"plant/a", "plant/b"}
    assert "device" not in outside
    assert told["device"] == "plant/c"
    assert first | {"time": "", "device": ""} == {
        "time": "",
        "level": "warning",
        "logger": "driver",
        "protocols": ["modbus", "virtual"],
        "device": "",
        "message": "lost: no reply",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])


def test_json_line_carries_the_traceback(set_up: SetUp) -> None:
    stream = set_up(LogConfig(format="json"))
    try:
        raise ValueError("line\nbreak \udcff")
    except ValueError:
        logging.getLogger("driver").exception("failed")
    (line,) = lines(stream)
    assert line["message"] == "failed"
    assert line["error"].startswith("Traceback")
    assert "line\nbreak" in line["error"]


@pytest.mark.parametrize(("level", "count"), (("debug", 3), ("info", 2), ("warning", 1), ("error", 0)))
def test_level_is_kept(set_up: SetUp, level: Any, count: int) -> None:
    stream = set_up(LogConfig(level=level))
    logger = logging.getLogger("driver")
    logger.debug("a")
    logger.info("b")
    logger.warning("c")
    assert len(stream.getvalue().splitlines()) == count


def test_text_names_the_device_once(set_up: SetUp) -> None:
    stream = set_up(LogConfig())
    token = current_device.set("plant/a")
    try:
        logging.getLogger("driver").warning("no reply")
        logging.getLogger("mapper").warning("device plant/a: lost")
    finally:
        current_device.reset(token)
    without, with_ = stream.getvalue().splitlines()
    assert without.endswith("WARNING driver: [plant/a] no reply")
    assert with_.endswith("WARNING mapper: device plant/a: lost")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("driver", logging.INFO, "file.py", 1, "%s", (text,), None)


@given(st.text())
def test_any_message_is_one_line(text: str) -> None:
    line = JsonFormatter(["modbus"]).format(record(text))
    assert "\n" not in line
    assert json.loads(line)["message"] == text.encode("utf-8", "backslashreplace").decode()
    line = TextFormatter().format(record(text))
    assert not [c for c in line if c != "\t" and unicodedata.category(c) == "Cc"], "no orders to a terminal either"
