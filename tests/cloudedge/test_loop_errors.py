"""What the event loop is told about peers that break TLS."""

import asyncio
import logging
import ssl
from typing import Any

import pytest
from picows import WSError

from cloudedge.loop_errors import LoopErrors


class Transport:
    def get_extra_info(self, _: str) -> tuple[str, int]:
        return ("10.0.0.7", 1)


def test_a_broken_peer_is_a_line_for_each_host(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        handler = LoopErrors()
        broken: dict[str, Any] = {"message": "Error occurred during read", "transport": Transport()}
        handler(loop, {**broken, "exception": ssl.SSLError})  # the class, as aiofastnet 1.2 does
        handler(loop, {**broken, "exception": ConnectionResetError("gone")})
        handler(loop, {**broken, "message": "SSL handshake failed", "exception": ssl.SSLError})
        handler(loop, {"message": "Future exception was never retrieved", "exception": WSError("a bad frame")})
        lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert lines == ["a connection with 10.0.0.7 broke: Error occurred during read: SSLError"]
        handler(loop, {"message": "a bug", "exception": ValueError("of ours")})
        assert "a bug" in caplog.text
        handler(loop, {"message": "a task", "exception": OSError("of no connection")})
        assert [record.name for record in caplog.records][-1] == "asyncio"
    finally:
        loop.close()
