"""The demo's child processes: started, watched, adopted when somebody else restarted one, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import Final

from kubetwin.demo.plan import PROCESSES, Plan

__all__ = ["ProcessFailed", "Processes"]

_STOP_TIMEOUT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


class ProcessFailed(Exception):
    """A process ended while the demo was starting; carries the end of its log."""


class Processes:
    """By name: the pid that is running, if any."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._adopted: dict[str, int] = {}

    async def start(self, name: str) -> None:
        """Start a process in a session of its own, its output in a log. It dies with the demo, however that ends."""
        with self._plan.log(name).open("ab") as log:
            self._children[name] = await asyncio.create_subprocess_exec(
                *self._plan.command(name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def pids(self) -> dict[str, int]:
        """What is running now. A process that somebody restarted is found by its command."""
        missing = [name for name in PROCESSES if self._own_pid(name) is None]
        self._adopted = _find({name: self._plan.command(name) for name in missing}) if missing else {}
        running = {name: self._own_pid(name) or self._adopted.get(name) for name in PROCESSES}
        return {name: pid for name, pid in running.items() if pid is not None}

    def check_started(self, name: str) -> None:
        """Raises ProcessFailed when a process has ended already."""
        child = self._children[name]
        if child.returncode is not None:
            tail = self._plan.log(name).read_text(errors="replace").splitlines()[-15:]
            raise ProcessFailed(f"{name} ended with {_ending(child.returncode)}:\n" + "\n".join(tail))

    def ending(self, name: str) -> str:
        """How a process ended, in words; empty while it runs or before it was started."""
        child = self._children.get(name)
        return "" if child is None or child.returncode is None else _ending(child.returncode)

    async def stop(self) -> None:
        """End everything, devices first, so that each finds its peer when it says goodbye; who lingers is killed."""
        for name in reversed(PROCESSES):
            pid = self.pids().get(name)
            if pid is None:
                continue
            _signal(pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await self._gone(name, pid)
            except TimeoutError:
                _signal(pid, signal.SIGKILL)
                await self._gone(name, pid)

    async def _gone(self, name: str, pid: int) -> None:
        child = self._children.get(name)
        if child is not None and child.pid == pid:
            await child.wait()
            return
        while _is_running(pid):  # noqa: ASYNC110 - not our child: there is nothing to wait on
            await asyncio.sleep(0.05)

    def _own_pid(self, name: str) -> int | None:
        child = self._children.get(name)
        return child.pid if child is not None and child.returncode is None else None


def _find(commands: dict[str, list[str]]) -> dict[str, int]:
    """The pids of this user's processes that were started with one of these commands. They are told by the end of the
    command, which names the demo's own file, folder or port: by which Python or script somebody started it is theirs.
    """
    endings = {"\0".join(["", *command[-2:], ""]).encode(): name for name, command in commands.items()}
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked, or is somebody else's
            command = (entry / "cmdline").read_bytes()
            name = next((name for ending, name in endings.items() if command.endswith(ending)), None)
            if name is not None and entry.stat().st_uid == os.getuid():
                found[name] = int(entry.name)
    return found


def _is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie, which only its own parent can remove (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ending(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"


def _die_with_parent() -> None:
    """Between fork and exec: ask the kernel for SIGTERM when the demo ends, even by kill -9 (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
