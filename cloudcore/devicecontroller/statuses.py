"""Keeps every DeviceStatus as it should be, with at most one PATCH per device and second on average.

Level-triggered: whatever changes (a report, a declaration, a node's link, the DeviceStatus itself), the device's key
goes into a queue, and a worker renders the status anew and writes the difference, if there is one. What arrives
meanwhile is merged and goes with the next PATCH.

A PATCH is refused when the DeviceStatus is not the one that the difference was taken from, so that of two replicas that
both believe to be in charge for a moment, none overwrites what it has not seen.

The confirmation of a report sets the pace: it leaves when the device may be written again. An edge core that has one
report of a device on its way then sends the newest values at the moment they can be written, and none grow old here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from typing import Final

from cloudcore.devicecontroller.conditions import NodeView, appearance, assumed_link
from cloudcore.devicecontroller.declarations import Declarations
from cloudcore.devicecontroller.kinds import DEVICES, STATUSES, node_name
from cloudcore.devicecontroller.known import Known, forget_state, from_status, merge_written, prune
from cloudcore.devicecontroller.links import Alone, Links, NodeLink, Writers
from cloudcore.devicecontroller.messages import report_ok
from cloudcore.devicecontroller.record import Record
from cloudcore.devicecontroller.render import device_status, is_lazy, owner_uid, render, status_patch
from cloudcore.devicecontroller.shown import Shown, read_shown
from cloudcore.kube import (
    AlreadyExists,
    Conflict,
    Informer,
    Key,
    KeyedQueue,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    TooManyRequests,
    Unavailable,
    identity,
    resource_version,
)
from cloudedge.message import now_ms

__all__ = ["StatusWriter"]

logger = logging.getLogger(__name__)

PATCH_INTERVAL_S: Final = 1.0
"""What each PATCH of a device uses up of its time: one a second in the long run."""
PATCH_CREDIT: Final = 2.0
"""How far a device may be ahead of that, in intervals. Without it, a device that reports every second would stay behind
for good after any delay, because nothing would ever be faster than the reports.
"""
PATCH_GAP: Final = 0.75
"""The least between two PATCHes of a device, in intervals."""
LAZY: Final = 5.0
"""How long what can wait waits for something to travel with, in intervals (see `is_lazy`)."""
MAX_WAITING: Final = 32
"""Reports of one device that wait for their confirmation. The oldest beyond is not confirmed, so it is sent again."""
BACKOFF_CAP_S: Final = 2.0
REFUSED_CAP_S: Final = 30.0


class StatusWriter:
    """`note` changes at any time; `work` in as many tasks as writes may be in flight."""

    def __init__(
        self,
        client: KubeClient,
        statuses: Informer,
        find_device: Callable[[Key], Object | None],
        declarations: Declarations,
        links: Links,
        *,
        tell: Callable[[Key, Object, Shown, Shown], None],
        writers: Writers | None = None,
        interval_s: float = PATCH_INTERVAL_S,
    ) -> None:
        """`tell` is called with device, what its DeviceStatus showed and what it shows now, after each write."""
        self.patches = 0
        self.dropped = 0
        """Reports that were forgotten unconfirmed because too many waited."""
        self._client = client
        self._statuses = statuses
        self._find_device = find_device
        self._declarations = declarations
        self._links = links
        self._tell = tell
        self._writers = writers or Alone()
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._records: dict[Key, Record] = {}
        self._later: dict[int, asyncio.TimerHandle] = {}
        self._numbers = itertools.count()
        self._queue: KeyedQueue[Key] = KeyedQueue()
        self._failing = ""

    def note(self, key: Key, *, delay_s: float = 0.0) -> None:
        """Something about the device changed, or will in `delay_s`."""
        self._queue.add(key, delay_s=delay_s)

    def note_status(self, key: Key, status: Object | None) -> None:
        """The DeviceStatus changed: see to it, unless that is our own write, and nobody else's with it."""
        record = self._records.get(key)
        if record is not None and status is not None:
            current = status.get("status")
            if record.writing is not None and not status_patch(current, record.writing):
                return
            written = from_status(current) if owner_uid(status) in ("", record.uid) else Known()
            if record.heard:
                record.known = merge_written(record.known, written)
            else:
                record.known, record.shown = written, read_shown(current)
        self.note(key)

    def forget(self, key: Key) -> None:
        """Another replica writes the device's status now. Reports that are not written yet are not confirmed, so that
        their node sends them again, to it.
        """
        self._records.pop(key, None)

    def update(
        self, key: Key, device: Object, change: Callable[[Known], Known], *, report_id: str, link: NodeLink
    ) -> None:
        """Merge a report into what is known; it is confirmed over `link` once the API has it."""
        record = self._record(key, device)
        record.known = change(record.known)
        record.heard = True
        record.waiting[report_id] = link
        while len(record.waiting) > MAX_WAITING:
            record.waiting.pop(next(iter(record.waiting)))
            self.dropped += 1
        self.note(key)

    def is_ours(self, key: Key) -> bool:
        """Whether the device's edge core has said something that stock ones do not say."""
        record = self._records.get(key)
        return record is not None and record.known.since_ms > 0

    @property
    def behind(self) -> int:
        """Writes that are due, and that no writer has had time for."""
        return self._queue.waiting

    def close(self) -> None:
        self._queue.close()
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()

    async def work(self) -> None:
        """Write what is due, one device after the other, until cancelled."""
        failures = 0
        while True:
            key = await self._queue.get()
            try:
                await self._writers.granted()
                await self._write(key)
                failures = 0
            except (Unavailable, TooManyRequests) as error:
                # The server's trouble, not the device's: this worker pauses, and the device keeps its turn.
                self._queue.add(key)
                self._note_failure(error)
                failures += 1
                pause_s = min(BACKOFF_CAP_S, 0.1 * 2 ** min(failures, 10))
                await asyncio.sleep(max(pause_s * random.uniform(0.5, 1.0), min(error.retry_after_s, 30.0)))  # noqa: S311
            except KubeError as error:
                self._note_refusal(key, error)
            except Exception:  # one device must not stop all others
                logger.exception("device %s: status could not be written; trying again later", key)
                self._queue.add(key, delay_s=REFUSED_CAP_S)
            finally:
                self._queue.done(key)
            # A key without a difference is done without waiting for anything: thousands of them, after a restart, would
            # hold up everybody else, and pile up confirmations that nobody gets to send.
            await asyncio.sleep(0)

    async def _write(self, key: Key) -> None:
        """Make one DeviceStatus what it should be, then confirm the reports that are in it."""
        device = self._find_device(key)
        if device is None:
            if (gone := self._records.pop(key, None)) is not None:
                self._confirm(gone)
            return
        if not self._writers.writes_for(node_name(device)):
            self.forget(key)
            return
        record = self._record(key, device)
        wanted = self._wanted(key, record)
        if wanted is None:
            return
        status = self._statuses.get(key)
        current = status.get("status") if status is not None else None
        patch = status_patch(current, wanted) if status is not None else {}
        lazy = bool(patch) and is_lazy(patch, current)
        if patch and (wait_s := self._ready_at(record, lazy=lazy) - self._loop.time()) > 0:
            if lazy:
                # Nodes send every state again when they connect, so a restart loses nothing; and as long as one state
                # is not confirmed, the next, which may be `offline`, waits at the node.
                self._confirm(record)
            self._queue.add(key, delay_s=wait_s)
            return
        confirmed, record.waiting = record.waiting, {}
        # What another device of that name was shown as is no news about this one.
        ours = status is not None and owner_uid(status) in ("", record.uid)
        before, shown = read_shown(current if ours else None), record.shown
        record.writing = wanted
        try:
            if status is None:
                await self._create(key, device, wanted)
            elif owner_uid(status) != record.uid:
                await self._adopt(key, device, status, wanted)
            elif patch:
                await self._patch(key, record, device, status, patch, wanted)
            else:
                record.lazy_since = None
                self._answer(confirmed)  # the API has it already
                return
        except BaseException:
            record.waiting = {**confirmed, **record.waiting}
            raise
        finally:
            record.writing = None
        record.failures, record.trouble = 0, ""
        self._recovered()
        self._tell(key, device, before, shown)
        self._answer_at(self._free_at(record), confirmed)

    def _free_at(self, record: Record) -> float:
        """Loop time from which the device may be patched."""
        return max(
            record.paid_until - PATCH_CREDIT * self._interval_s, record.patched_at + PATCH_GAP * self._interval_s
        )

    def _ready_at(self, record: Record, *, lazy: bool) -> float:
        """Loop time from which a patch may go out."""
        if not lazy:
            return self._free_at(record)
        if record.lazy_since is None:
            record.lazy_since = self._loop.time()
        return max(self._free_at(record), record.lazy_since + LAZY * self._interval_s)

    def _wanted(self, key: Key, record: Record) -> Object | None:
        declared = self._declarations.get(key)
        if declared is None:
            return None
        record.known = prune(record.known, declared.properties)
        view = self._view(key, declared.node, record.shown)
        if view.link == "down":
            record.known = forget_state(record.known)
        record.shown = appearance(record.known, declared, record.shown, node=view, now_ms=now_ms())
        return render(record.known, declared, record.shown)

    def _view(self, key: Key, node: str, shown: Shown) -> NodeView:
        """The device's node; one that is away and may be back at once counts as what it was."""
        if not node or self._links.get(node) is not None:
            return NodeView()
        left_s = self._links.grace_left_s(node)
        if left_s > 0:
            self._queue.add(key, delay_s=left_s + 0.01)  # look again when the grace is over
        return NodeView(link=assumed_link(shown, node) if left_s > 0 else "down", lost_ms=self._links.lost_ms(node))

    async def _patch(
        self, key: Key, record: Record, device: Object, status: Object, patch: Object, wanted: Object
    ) -> None:
        before = record.lazy_since, record.patched_at, record.paid_until
        record.lazy_since = None
        record.patched_at = self._loop.time()
        record.paid_until = max(record.paid_until, record.patched_at) + self._interval_s
        try:
            self.patches += 1
            patch = {"metadata": {"resourceVersion": resource_version(status)}, **patch}
            self._statuses.observe(await self._client.patch(STATUSES, key, patch))
            record.patched_at = self._loop.time()  # only now for sure: however long it took, the gap is seen outside
        except NotFound:  # deleted, and the watch has not said so yet
            await self._create(key, device, wanted)
        except Conflict:  # somebody else wrote, and the watch has not said so yet
            record.lazy_since, record.patched_at, record.paid_until = before
            self._statuses.observe(await self._client.get(STATUSES, key))
            raise

    async def _create(self, key: Key, device: Object, wanted: Object) -> None:
        try:
            self._statuses.observe(await self._client.create(STATUSES, device_status(key, device, wanted)))
        except AlreadyExists:  # and the watch has not said so yet
            self._statuses.observe(await self._client.get(STATUSES, key))
            raise

    async def _adopt(self, key: Key, device: Object, status: Object, wanted: Object) -> None:
        """A DeviceStatus without an owner becomes ours; one of a device of that name before is replaced."""
        if owner_uid(status):
            if identity(await self._client.get(DEVICES, key)) != identity(device):
                raise Conflict(f"devices {key}: it has been made anew, and the watch has not said so yet")
            await self._client.delete(STATUSES, key, uid=identity(status))
            await self._create(key, device, wanted)
            return
        ours = device_status(key, device, wanted)
        patch = {
            **status_patch(status.get("status"), wanted),
            "metadata": {
                "ownerReferences": ours["metadata"]["ownerReferences"],
                "resourceVersion": resource_version(status),
            },
        }
        self._statuses.observe(await self._client.patch(STATUSES, key, patch))

    def _record(self, key: Key, device: Object) -> Record:
        """What is known of the device; at first what its DeviceStatus says."""
        uid, node = identity(device), node_name(device)
        record = self._records.get(key)
        if record is not None and record.uid == uid:
            if record.node != node:  # it moved: what state it is in is for the new node to say
                record.node, record.known = node, forget_state(record.known)
            return record
        if record is not None:  # another device had the name
            self._confirm(record)
        status = self._statuses.get(key)
        ours = status is not None and owner_uid(status) in ("", uid)
        current = status.get("status") if ours and status is not None else None
        record = self._records[key] = Record(uid, node, from_status(current), read_shown(current))
        return record

    def _confirm(self, record: Record) -> None:
        """These reports have done what they can: the API has them, or never will."""
        waiting, record.waiting = record.waiting, {}
        self._answer(waiting)

    def _answer_at(self, when: float, reports: dict[str, NodeLink]) -> None:
        """Confirm reports at a loop time. Confirmations lost by a restart are asked for again by the edge."""
        if not reports:
            return
        # No closure over its own timer: that would keep the link, with its TLS, until there is a garbage collection.
        number = next(self._numbers)
        self._later[number] = self._loop.call_at(when, self._answer_later, number, reports)

    def _answer_later(self, number: int, reports: dict[str, NodeLink]) -> None:
        del self._later[number]
        self._answer(reports)

    @staticmethod
    def _answer(reports: dict[str, NodeLink]) -> None:
        for report_id, link in reports.items():
            link.post(report_ok(report_id))

    def _note_failure(self, error: KubeError) -> None:
        if not self._failing:
            self._failing = type(error).__name__
            logger.warning("device statuses cannot be written: %s; trying on, reports wait", error)

    def _recovered(self) -> None:
        if self._failing:
            self._failing = ""
            logger.info("device statuses can be written again")

    def _note_refusal(self, key: Key, error: KubeError) -> None:
        """The server answered, and not as hoped: this device is tried again, more and more slowly."""
        record = self._records.get(key)
        if record is None:
            return
        record.failures += 1
        trouble = type(error).__name__
        if record.failures > 1 and trouble != record.trouble:  # the first may be a race with the watch
            logger.error("device %s: its DeviceStatus cannot be written: %s; trying on", key, error)
            record.trouble = trouble
        delay_s = min(REFUSED_CAP_S, 0.05 * 4 ** min(record.failures - 1, 6))
        self._queue.add(key, delay_s=delay_s)
