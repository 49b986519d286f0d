"""A question to a node, put into the DeviceStatus and taken out again. See `cloudedge.queries`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import string
import time
from typing import Any, Final

import msgspec
from msgspec import Raw

from cloudedge.queries import Answer, Query
from kubetwin.kubectl import Kubectl, KubectlError
from kubetwin.twin.options import Target
from kubetwin.twin.world import Away, Follower, Scope

__all__ = ["SILENT_S", "NoAnswer", "ask", "new_query"]

SILENT_S: Final = 10.0
"""Longer than CloudCore gives a node: after this nobody answers questions here."""
_REMOVE_S: Final = 5.0
_ALPHABET: Final = string.ascii_lowercase + string.digits


class NoAnswer(Exception):
    """Nobody answered: CloudCore is down, or KubeEdge's own, which knows no questions."""


def new_query(**content: Any) -> Query:
    """A `Query` with an id nobody else has, asked now."""
    return Query(
        id="".join(secrets.choice(_ALPHABET) for _ in range(16)), asked_ms=time.time_ns() // 1_000_000, **content
    )


async def ask(kubectl: Kubectl, device: Target, query: Query, *, timeout_s: float = SILENT_S) -> Answer:
    """Ask the node of a device. The question is removed again, also when the caller is cancelled.

    Raises:
        NoAnswer: Nobody answered in time.
        KubectlError: The question could not be put, or the answer not be read.
    """
    question = {k: v for k, v in msgspec.to_builtins(query).items() if k != "id"}
    try:
        async with Follower(kubectl, Scope(names=(device,)), ("devicestatuses",)) as follower:
            await _put(kubectl, device, query.id, question)
            return await _answer(follower, query.id, timeout_s)
    finally:
        with contextlib.suppress(KubectlError, TimeoutError):
            async with asyncio.timeout(_REMOVE_S):
                await _put(kubectl, device, query.id, None)


async def _answer(follower: Follower, id_: str, timeout_s: float) -> Answer:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                change = await follower.next()
                if change is None or isinstance(change, Away):
                    continue
                for status in change.items:
                    if answer := _find(status, id_):
                        return answer
    except TimeoutError:
        raise NoAnswer(
            f"nobody answered within {timeout_s:g} s: CloudCore is not running, or is KubeEdge's own, "
            "which cannot ask its nodes"
        ) from None


def _find(status: dict[str, Any], id_: str) -> Answer | None:
    extensions = (status.get("status") or {}).get("extensions") or {}
    entry = (extensions.get("queries") or {}).get(id_) or {}
    answer = entry.get("answer") if isinstance(entry, dict) else None
    if not isinstance(answer, dict):
        return None
    error = answer.get("error") or ("" if "result" in answer else "CloudCore sent an answer without a result")
    return Answer(
        id=id_,
        result=Raw(msgspec.json.encode(answer.get("result"))),
        error=str(error),
        reason=str(answer.get("reason") or ""),
    )


async def _put(kubectl: Kubectl, device: Target, id_: str, question: dict[str, Any] | None) -> None:
    patch = {"status": {"extensions": {"queries": {id_: question}}}}
    await kubectl.patch("devicestatuses", device.namespace, device.name, patch, "merge")
