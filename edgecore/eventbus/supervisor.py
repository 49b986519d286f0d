"""Keeps the internal broker running: a process of its own, started again with growing pauses, gone with edge core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from edgecore.eventbus.brokerwire import BrokerAnswer, BrokerSettings
from edgecore.eventbus.settings import BrokerTarget

__all__ = ["BrokerProcess"]

logger = logging.getLogger(__name__)

START_S: Final = 30.0
STOP_S: Final = 2.0
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 10.0
STABLE_AFTER_S: Final = 30.0
HANGS_AFTER_S: Final = 60.0


class BrokerProcess:
    """`target.port` of 0: any free one, and the same again when it is restarted, if it can be had. `answers`: whether
    edge core is connected to it.
    """

    def __init__(self, target: BrokerTarget, *, queue_size: int, answers: Callable[[], bool]) -> None:
        self._wanted = target
        self._queue_size = queue_size
        self._answers = answers
        self._port = target.port
        self.target: BrokerTarget | None = None
        """Where it listens; None while it does not."""
        self.pid: int | None = None
        self.trouble = ""

    async def run(self) -> None:
        """Until cancelled; then the process has ended."""
        loop = asyncio.get_running_loop()
        delay = FIRST_RETRY_S
        if not self._wanted.is_local:
            logger.warning(
                "MQTT: the internal broker has no passwords and listens on %s: whoever reaches it can read and write"
                " twins; use a loopback address in eventBus.mqttServerInternal, or an external broker",
                self._wanted.host,
            )
        while True:
            since = loop.time()
            try:
                await self._run_once()
            except OSError as error:
                self._note(f"the internal broker cannot be started: {error}")
            if loop.time() - since >= STABLE_AFTER_S:
                delay = FIRST_RETRY_S
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_S)

    async def _run_once(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the working directory is not ours to import, unless we came from there ourselves
            "-m",
            "edgecore.eventbus.broker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            answer = await self._start(process)
            if answer.problem:
                self._note(
                    f"the internal broker cannot listen on {self._wanted.url}: {answer.problem}{_advice(answer)}"
                )
                if self._wanted.port == 0:
                    self._port = 0
                return
            self._port = answer.port
            self.pid = process.pid
            url = f"tcp://{self._wanted.host}:{answer.port}"
            self.target = msgspec.structs.replace(self._wanted, url=url, port=answer.port)
            self.trouble = ""
            logger.info("MQTT: the internal broker listens on %s (process %d)", url, process.pid)
            self._note(await self._end_of(process))
        finally:
            self.target = self.pid = None
            await _end(process)

    async def _end_of(self, process: asyncio.subprocess.Process) -> str:
        """Why it is to be started again: it has ended, or it is there and does not answer."""
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            try:
                async with asyncio.timeout(HANGS_AFTER_S / 4):
                    return f"the internal broker ended with code {await process.wait()}"
            except TimeoutError:
                if self._answers():
                    answered = loop.time()
                elif loop.time() - answered >= HANGS_AFTER_S:
                    return f"the internal broker has not answered for {HANGS_AFTER_S:g} s and is ended"

    async def _start(self, process: asyncio.subprocess.Process) -> BrokerAnswer:
        settings = BrokerSettings(self._wanted.host, self._port, self._queue_size, logger.isEnabledFor(logging.DEBUG))
        assert process.stdin is not None  # noqa: S101 - pipes, both
        assert process.stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(START_S):
                process.stdin.write(msgspec.json.encode(settings) + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except (TimeoutError, ConnectionError) as error:
            return BrokerAnswer(problem=str(error) or f"no word from it for {START_S:g} s")
        try:
            return msgspec.json.decode(line, type=BrokerAnswer)
        except msgspec.MsgspecError:
            return BrokerAnswer(problem="its process ended before it listened; see the log above")

    def _note(self, trouble: str) -> None:
        """Log on the change, not at every try."""
        if trouble != self.trouble:
            logger.error("MQTT: %s; trying again until it works", trouble)
        self.trouble = trouble


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it, by the way it watches first."""
    if process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _advice(answer: BrokerAnswer) -> str:
    if "address already in use" in answer.problem.lower():
        return "; another broker is there: choose another eventBus.mqttServerInternal, or use it with mqttMode 2"
    return ""
