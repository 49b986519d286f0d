"""`kubectl twin set`: check, send, and wait for what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from kubetwin.kubectl import Forbidden, Kubectl, KubectlError, ObjectMissing
from kubetwin.twin.options import FAILED, TIMED_OUT, USAGE, Failure, Target
from kubetwin.twin.text import safe
from kubetwin.twin.verdicts import Verdict, verdicts
from kubetwin.twin.wishes import RefusedWish, Wish, check_wishes, is_index_moved, wish_patch
from kubetwin.twin.world import Away, Follower, Scope, World, nodes_away

__all__ = ["send_wishes", "wait_for_wishes"]

ATTEMPTS: Final = 3
"""To patch a list that somebody else is changing."""
NODE_CHECK_S: Final = 5.0
"""So often the node is asked for, where the DeviceStatus does not tell."""

Json = Mapping[str, Any]


async def send_wishes(kubectl: Kubectl, device: Target, wishes: Sequence[Wish], *, dry_run: bool) -> None:
    """Patch the Device.

    Raises:
        Failure: The wishes do not fit the device; nothing was sent.
        KubectlError: The cluster refuses.
    """
    for attempt in range(1, ATTEMPTS + 1):
        current = await kubectl.get("devices", device.namespace, device.name)
        try:
            check_wishes(wishes, current, await _model_of(kubectl, device, current))
        except RefusedWish as refused:
            raise Failure(safe(str(refused)), USAGE) from refused
        patch = wish_patch(wishes, current)
        try:
            await kubectl.patch("devices", device.namespace, device.name, patch, "json", dry_run=dry_run)
        except ObjectMissing:
            raise
        except KubectlError:
            after = await kubectl.get("devices", device.namespace, device.name)
            same = after["metadata"].get("uid") == current["metadata"].get("uid")
            if attempt < ATTEMPTS and (not same or is_index_moved(patch, after)):
                continue
            raise
        return


async def _model_of(kubectl: Kubectl, device: Target, current: Json) -> Json | None:
    name = ((current.get("spec") or {}).get("deviceModelRef") or {}).get("name") or ""
    if not name:
        raise Failure(
            f"device {device.name!r} names no model (spec.deviceModelRef.name), so nothing can be written", USAGE
        )
    try:
        return await kubectl.get("devicemodels", device.namespace, name)
    except ObjectMissing as error:
        raise Failure(f"{error}: without its model nothing is written to device {device.name!r}", USAGE) from error
    except Forbidden as error:
        click.echo(f"not checked against the model: {error}", err=True)
        return None


async def wait_for_wishes(kubectl: Kubectl, device: Target, wishes: Sequence[Wish], *, timeout_s: float) -> None:
    """Print each value when it is applied, and on standard error what it waits for.

    Raises:
        Failure: One failed, or not all were applied in time.
    """
    progress = _Progress(device)
    scope = Scope(names=(device,))
    try:
        async with asyncio.timeout(timeout_s):
            await _wait(kubectl, World(scope), wishes, progress)
    except TimeoutError:
        left = [v for v in progress.last if v.outcome == "pending"]
        told = "; ".join(f"{v.wish} is pending" + (f": {v.reason}" if v.reason else "") for v in left)
        raise Failure(
            safe(f"not applied within {timeout_s:g} s: {told or 'the API has not answered'}"), TIMED_OUT
        ) from None
    if failed := [v for v in progress.last if v.outcome == "failed"]:
        raise Failure(safe("; ".join(f"{v.wish} failed: {v.reason or 'no reason given'}" for v in failed)), FAILED)


async def _wait(kubectl: Kubectl, world: World, wishes: Sequence[Wish], progress: _Progress) -> None:
    heard: set[str] = set()
    loop = asyncio.get_running_loop()
    away, check_at = set[str](), loop.time()
    async with Follower(kubectl, world.scope) as follower:
        while True:
            change = await follower.next(within_s=NODE_CHECK_S)
            if isinstance(change, Away):
                progress.tell(change.trouble or "the Kubernetes API answers again")
                continue
            if change is not None:
                world.take(change)
                heard.add(change.plural)
            if len(heard) < 3:
                continue
            if loop.time() >= check_at:
                away, check_at = await nodes_away(kubectl, world.nodes()), loop.time() + NODE_CHECK_S
            progress.show(_verdicts(world, wishes, away))
            if all(v.outcome != "pending" for v in progress.last):
                return


def _verdicts(world: World, wishes: Sequence[Wish], away: set[str]) -> list[Verdict]:
    device = next(iter(world.get("devices")), None)
    spec = (device or {}).get("spec") or {}
    model_name = (spec.get("deviceModelRef") or {}).get("name")
    types = {
        p.get("name", ""): p.get("type") or ""
        for model in world.get("devicemodels")
        if model["metadata"]["name"] == model_name
        for p in (model.get("spec") or {}).get("properties") or ()
    }
    status = next(iter(world.get("devicestatuses")), None)
    return verdicts(wishes, device, status, types, node_away=spec.get("nodeName") in away)


class _Progress:
    """What is said while somebody waits: each thing once."""

    def __init__(self, device: Target) -> None:
        self._device = device
        self._told: dict[Wish, Verdict] = {}
        self.last: list[Verdict] = []

    def show(self, now: list[Verdict]) -> None:
        self.last = now
        for verdict in now:
            if self._told.get(verdict.wish) == verdict:
                continue
            self._told[verdict.wish] = verdict
            if verdict.outcome == "applied":
                told = (
                    f"{verdict.wish} applied"
                    if verdict.wish.value
                    else f"nothing is wanted of {verdict.wish.property_name}"
                )
                click.echo(safe(f"{self._device.name}: {told}"))
            elif verdict.outcome == "pending" and verdict.reason:
                click.echo(safe(f"{verdict.wish} is pending: {verdict.reason}"), err=True)

    def tell(self, trouble: str) -> None:
        click.echo(safe(trouble), err=True)
