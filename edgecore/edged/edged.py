"""Keeps the Node and its Lease as they should be, while there is a channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from cloudedge import ConnectionLost, MalformedMessage
from cloudedge.replies import RequestRefused
from dmi.metrics import Metrics
from edgecore.bus import Bus, CloudConnected
from edgecore.config import EdgedConfig
from edgecore.edged.asking import NoAnswer, Questions
from edgecore.edged.machine import local_address, read_machine
from edgecore.edged.node import (
    Json,
    heartbeat_patch,
    lease_object,
    missing_labels,
    node_labels,
    node_object,
    node_status,
    status_patch,
)
from edgecore.edged.timing import duration_s

__all__ = ["Edged"]

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 300.0
"""A status that did not change is sent this often, as kubelet does."""
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 300.0
AWAY_S: Final = 60.0
"""Without a channel its return is waited for; this is only in case it was missed."""


class Edged:
    def __init__(
        self,
        config: EdgedConfig,
        *,
        node: str,
        bus: Bus,
        data_directory: Path,
        version: str = "",
        metrics: Metrics | None = None,
    ) -> None:
        """`data_directory`: of its file system the node's free space is shown."""
        self._config = config
        self._node = node
        self._directory = data_directory
        self._version = version
        self._questions = Questions(bus, source="edged")
        self._url = ""
        self._address = config.node_ip
        self._uid = ""
        """Of the Node; empty: it is not known to be there."""
        self._status: Json | None = None
        """As the cloud has it; None: unknown."""
        self._sent_at = 0.0
        self._lease: Json | None = None
        self._kicks = {"node": asyncio.Event(), "lease": asyncio.Event()}
        """Set where there is something to do before its time."""
        self._troubles: dict[str, str] = {}
        self._asked = (metrics or Metrics()).counter(
            "kubetwin_edgecore_node_requests_total", "Requests about the Node and its Lease.", "what", "result"
        )
        bus.subscribe(CloudConnected, self._begin)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep("node", self._keep_node), name="edged node")
            tasks.create_task(self._keep("lease", self._keep_lease), name="edged lease")

    async def _begin(self, event: CloudConnected) -> None:
        self._url = event.url
        self._status = self._lease = None  # what the cloud has may be anything now
        for kick in self._kicks.values():
            kick.set()

    async def _keep(self, what: str, step: Callable[[], Awaitable[float]]) -> None:
        """Take one step after the other; each says how many seconds until the next."""
        kick = self._kicks[what]
        # A Lease is asked for no less often than it is renewed: it must not stay old when the API is back.
        longest_s = MAX_PAUSE_S if what == "node" else min(MAX_PAUSE_S, self._lease_s / 4)
        pauses = _pauses(longest_s)
        await kick.wait()
        while True:
            kick.clear()
            try:
                wait = await step()
                self._note(what, "")
                pauses = _pauses(longest_s)
            except ConnectionLost:
                wait = AWAY_S
            except (RequestRefused, NoAnswer, MalformedMessage) as error:
                self._note(what, str(error))
                wait = next(pauses)
            except Exception as error:  # noqa: BLE001 - an answer may have any form, and is not to end edge core
                self._status = self._lease = None
                self._note(what, f"the cloud's answer cannot be used: {error!r}", cause=error)
                wait = next(pauses)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await kick.wait()

    async def _keep_node(self) -> float:
        machine = read_machine(self._directory)
        labels = node_labels(self._node, machine, self._config.node_labels)
        if self._status is None:
            self._address = self._config.node_ip or await local_address(self._url)
            found = await self._find(labels)
            self._uid = str((found.get("metadata") or {}).get("uid") or "")
            if missing_labels(found, labels):
                await self._ask("labels", "update", f"null/node/{self._node}", node_object(self._node, labels))
            status = found.get("status")
            self._status = status if isinstance(status, dict) else {}
            self._sent_at = 0.0
        known = self._status
        status = self._make_status(known)
        patch = status_patch(known, status)
        if patch is not None or time.monotonic() - self._sent_at >= HEARTBEAT_S or not self._sent_at:
            await self._patch(patch or heartbeat_patch(status))
            if self._status is known:  # else it is to be asked for anew
                self._status, self._sent_at = status, time.monotonic()
        return duration_s(self._config.tailored_kubelet_config.node_status_update_frequency)

    async def _find(self, labels: dict[str, str]) -> Json:
        """The Node as the cloud has it, made if it is not there."""
        if not self._uid and self._config.register_node and self._config.tailored_kubelet_config.register_node:
            node = node_object(self._node, labels, self._make_status({}))
            try:
                return await self._ask("register", "insert", f"null/node/{self._node}", node)
            except RequestRefused as error:
                if error.reason != "AlreadyExists":
                    raise
        return await self._patch({})  # changes nothing, and answers with the Node

    async def _patch(self, patch: Json) -> Json:
        """As text (channel contract 1.2)."""
        text = msgspec.json.encode(patch).decode()
        try:
            return await self._ask("status", "patch", f"null/nodepatch/{self._node}", text)
        except RequestRefused as error:
            if error.reason == "NotFound":
                self._uid, self._status = "", None  # deleted: register again
            raise

    async def _keep_lease(self) -> float:
        resource, duration = f"kube-node-lease/lease/{self._node}", self._lease_s
        if self._lease is None:
            try:
                self._lease = await self._ask("lease", "query", resource)
            except RequestRefused as error:
                if error.reason != "NotFound":
                    raise
        lease = lease_object(self._node, duration_s=duration, at=time.time(), found=self._lease, node_uid=self._uid)
        operation = "update" if self._lease else "insert"
        try:
            answer = await self._ask("lease", operation, resource, lease)
            self._lease = {"metadata": answer.get("metadata") or {}}
        except (RequestRefused, NoAnswer) as error:
            self._lease = None  # somebody else changed or removed it: look again
            if isinstance(error, RequestRefused) and error.reason == "NotFound":
                self._status = None  # it goes with the Node that owns it
            raise
        if self._troubles.get("lease"):
            # Meanwhile the cluster may have marked the node as gone, and takes that back for a new status only.
            self._status = None
            self._kicks["node"].set()
        return duration / 4

    @property
    def _lease_s(self) -> int:
        return self._config.tailored_kubelet_config.node_lease_duration_seconds

    def _make_status(self, known: Json) -> Json:
        return node_status(
            self._node,
            read_machine(self._directory),
            address=self._address,
            version=self._version,
            at=time.time(),
            known=known,
        )

    async def _ask(self, what: str, operation: str, resource: str, content: object = None) -> Json:
        try:
            answer = await self._questions.ask(operation, resource, content)
        except (RequestRefused, NoAnswer, MalformedMessage):
            self._asked.add(what, "failed")
            raise
        self._asked.add(what, "done")
        return answer

    def _note(self, what: str, trouble: str, *, cause: Exception | None = None) -> None:
        """Log on the change, not at every try. `cause`: it is not foreseen, and is shown with its traceback."""
        if trouble and trouble != self._troubles.get(what):
            logger.warning("%s of node %s: %s; trying again", what, self._node, trouble, exc_info=cause)
        self._troubles[what] = trouble


def _pauses(longest_s: float) -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield min(pause, longest_s)
        pause = min(pause * 2, longest_s)
