"""What every command of `kubectl twin` takes: kubectl's own flags, and names as people write them. And how they end.

| exit code | means |
|---|---|
| 0 | done |
| 1 | it failed: no such device, a write that failed, no answer to a question |
| 2 | wrong usage, or a value that does not fit the model: nothing was sent |
| 3 | the cluster could not be asked: no kubectl, no permission, no definitions, the API is away |
| 4 | `set --wait`: not applied in time |
"""

from __future__ import annotations

import asyncio
import difflib
import re
import signal
import sys
from collections.abc import Callable, Collection, Coroutine
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import click
from msgspec import Struct

from kubetwin.kubectl import Kubectl, KubectlError, ObjectMissing, kubectl_path

__all__ = [
    "CLUSTER_AWAY",
    "FAILED",
    "TIMED_OUT",
    "USAGE",
    "Cluster",
    "Failure",
    "Target",
    "cluster_options",
    "did_you_mean",
    "duration_s",
    "run",
    "target",
]

FAILED: Final = 1
USAGE: Final = 2
CLUSTER_AWAY: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130
TERMINATED: Final = 143

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

P = ParamSpec("P")
R = TypeVar("R")


class Failure(click.ClickException):
    """Ends the command with a sentence and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance; typeshed says class


class Target(Struct, frozen=True):
    """One device; an empty namespace is the command's."""

    namespace: str
    name: str


class Cluster(Struct, frozen=True):
    """Which cluster and namespace a command is about."""

    kubectl: Kubectl
    given_namespace: str = ""

    async def namespace(self) -> str:
        return self.given_namespace or await self.kubectl.namespace()

    async def resolve(self, device: Target) -> Target:
        """With its namespace.

        Raises:
            UsageError: `-n` says another one.
        """
        if device.namespace and self.given_namespace not in ("", device.namespace):
            raise click.UsageError(
                f"{device.namespace}/{device.name} is not in namespace {self.given_namespace!r}, which -n names"
            )
        return device if device.namespace else Target(await self.namespace(), device.name)


def cluster_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command kubectl's flags, before or after its name, and pass it a `Cluster` as `cluster`."""

    @click.option("--kubeconfig", metavar="FILE", help="As for kubectl.")
    @click.option("--context", "context_name", metavar="NAME", help="As for kubectl.")
    @click.option("-n", "--namespace", metavar="NS", help="As for kubectl.")
    @click.pass_context
    @wraps(command)
    def with_cluster(
        context: click.Context,
        /,
        *args: Any,
        kubeconfig: str | None,
        context_name: str | None,
        namespace: str | None,
        **kwargs: Any,
    ) -> R:
        outer = context.obj if isinstance(context.obj, dict) else {}
        given = {"--kubeconfig": kubeconfig, "--context": context_name, "--namespace": namespace}
        flags = {**outer, **{flag: value for flag, value in given.items() if value}}
        if flags.get("--namespace") and not _NAME.fullmatch(flags["--namespace"]):
            raise click.UsageError(f"{flags['--namespace']!r} is not the name of a namespace")
        if context.invoked_subcommand is not None:
            context.obj = flags
        words = [w for flag in ("--kubeconfig", "--context") if flags.get(flag) for w in (flag, flags[flag])]
        cluster = Cluster(Kubectl((kubectl_path(), *words)), flags.get("--namespace", ""))
        return command(*args, cluster=cluster, **kwargs)

    return with_cluster


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a command's I/O; what the cluster refuses ends the program with a sentence and an exit code."""

    async def until_ended() -> R:
        task = asyncio.current_task()
        if task is not None:  # as Ctrl-C: a question that was put is taken out again
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(until_ended())
    except asyncio.CancelledError:
        sys.exit(TERMINATED)
    except ObjectMissing as error:
        raise Failure(str(error)) from error
    except KubectlError as error:
        raise Failure(str(error), CLUSTER_AWAY) from error
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def target(text: str) -> Target:
    """`NAME` or `NAMESPACE/NAME`; `device/NAME` as kubectl prints it is understood too.

    Raises:
        UsageError: It is neither.
    """
    namespace, slash, name = text.rpartition("/")
    if slash and namespace.partition(".")[0] in ("device", "devices", "dev") and namespace != "dev":
        namespace = ""
    if not _NAME.fullmatch(name) or (namespace and not _NAME.fullmatch(namespace)) or text.startswith("/"):
        raise click.UsageError(f"{text!r} is not the name of a device: write NAME or NAMESPACE/NAME")
    return Target(namespace, name)


def duration_s(text: str) -> float:
    """`500ms`, `30s`, `1h30m`, `2d`; a bare number is seconds.

    Raises:
        UsageError: It is none, or not above zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if "".join(number + unit for number, unit in parts) != text or not parts or len(text) > 32:
        raise click.UsageError(f"{text!r} is not a duration: write 30s, 10m, 1h30m or 2d")
    if len(parts) > 1 and not all(unit for _, unit in parts):
        raise click.UsageError(f"{text!r} is not a duration: write the unit of every part, as in 1h30m")
    seconds = sum(float(number) * _UNITS_S[unit or "s"] for number, unit in parts)
    if seconds <= 0:
        raise click.UsageError(f"{text!r} is no time at all")
    return seconds


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A hint to put behind an error; empty when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
