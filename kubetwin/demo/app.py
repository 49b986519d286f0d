"""The demo's course: files, processes, manifests, then watching until Ctrl-C or the time is up."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from cloudcore import crds
from cloudedge.certificates import mint
from dmi.errors import ConfigError
from kubetwin.demo.api import ApiReader, ApiUnavailable
from kubetwin.demo.link import count_established
from kubetwin.demo.plan import NODE, PROCESSES, Plan, make_plan
from kubetwin.demo.processes import Processes, ProcessFailed
from kubetwin.demo.screen import Picture, make_screen
from kubetwin.kubectl import kubectl_path
from kubetwin.rows import device_rows, twin_rows

__all__ = ["run"]

_START_TIMEOUT_S: Final = 30.0
_REFRESH_S: Final = 0.5


def run(directory: Path | None, seconds: float | None) -> int:
    """Run the demo until Ctrl-C, SIGTERM or `seconds`. Returns the exit code: 1 when something did not start."""
    # What goes wrong is shown on the screen; the processes keep logs of their own.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        plan = make_plan(directory)
        with _only_one(plan.directory):
            asyncio.run(_run(plan, seconds))
    except (ConfigError, ProcessFailed, OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None)
        click.echo(f"demo: {error}" + (f"\n{output}" if output else ""), err=True)
        return 1
    return 0


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("--dir", f"a demo is running in {directory} already: choose another with --dir") from None
        yield


async def _run(plan: Plan, seconds: float | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    processes = Processes(plan)
    (plan.directory / "demo.json").unlink(missing_ok=True)  # of the last run: it appears when everything is started
    try:
        reader = await _start(plan, processes, stop)
        if reader is not None:
            await _watch(plan, processes, reader, stop, seconds)
    finally:
        await processes.stop()


async def _start(plan: Plan, processes: Processes, stop: asyncio.Event) -> ApiReader | None:
    """Bring everything up; None when the user stopped it meanwhile. Only the API must be there before the manifests."""
    await processes.stop()  # what somebody restarted outlives a demo that was killed
    plan.write()
    mint(plan.certificates, nodes=[NODE], names=["127.0.0.1", "localhost"])
    plan.kubeconfig.unlink(missing_ok=True)
    await processes.start("apiserver")
    reader = await _wait_for_api(plan, processes, stop)
    if reader is None:
        return None
    await _apply(plan, crds.render())
    for name in PROCESSES:
        if name != "apiserver":
            await processes.start(name)
    await _apply(plan, plan.manifests())
    plan.write_summary(processes.pids())
    return reader


async def _wait_for_api(plan: Plan, processes: Processes, stop: asyncio.Event) -> ApiReader | None:
    """Until the CRDs could be applied: the kubeconfig is written, and a request is answered, be it with 404."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not stop.is_set():
        processes.check_started("apiserver")
        if plan.kubeconfig.exists():
            command = [kubectl_path(), "--kubeconfig", str(plan.kubeconfig), "get", "--raw", "/readyz"]
            if (await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)).returncode == 0:
                return ApiReader(plan.kubeconfig)
        if time.monotonic() > deadline:
            raise ProcessFailed(f"apiserver did not answer within {_START_TIMEOUT_S:g} s; see {plan.log('apiserver')}")
        await asyncio.sleep(0.05)
    return None


async def _apply(plan: Plan, manifests: str) -> None:
    command = [kubectl_path(), "--kubeconfig", str(plan.kubeconfig), "apply", "-f", "-"]
    await asyncio.to_thread(subprocess.run, command, input=manifests, text=True, capture_output=True, check=True)


async def _watch(
    plan: Plan, processes: Processes, reader: ApiReader, stop: asyncio.Event, seconds: float | None
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    known: dict[str, int] = processes.pids()
    objects: list[list[dict[str, Any]]] = [[], [], []]
    with make_screen(plan, sys.stdout) as screen:
        while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            problem = ""
            try:
                objects = await asyncio.to_thread(
                    lambda: [reader.list(plural) for plural in ("devices", "devicemodels", "devicestatuses")]
                )
            except ApiUnavailable as error:
                problem = f"the API does not answer: {error}"
            pids = processes.pids()
            if pids != known:
                known = pids
                plan.write_summary(pids)
            screen.show(
                Picture(
                    twins=twin_rows(*objects, now_ms=time.time_ns() // 1_000_000),  # old values grow older
                    devices=device_rows(objects[2]),
                    pids=pids,
                    endings={name: processes.ending(name) for name in PROCESSES if name not in pids},
                    connected=count_established(plan.hub_port) > 0,
                    problem=problem,
                )
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await stop.wait()
