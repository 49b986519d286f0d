"""Twins and state in `Device.status`, for readers from before KubeEdge 1.23, which had them there.

The shape is 1.22's (v1beta1): `status.twins[]` of `propertyName`, `reported` and `observedDesired`, `status.state` and
`status.lastOnlineTime`. Level-triggered from the DeviceStatus, so a device has at most one PATCH for each of that, and
none where nothing of it differs. A Device that is mirrored bears an annotation: where mirroring is switched off again,
what was mirrored is removed, for it would look fresh for ever, and what others wrote there is not.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, Final

from cloudcore.devicecontroller.kinds import DEVICES, MIRRORED, node_name
from cloudcore.devicecontroller.links import Alone, Writers
from cloudcore.devicecontroller.render import owner_uid
from cloudcore.kube import (
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
)

__all__ = ["ANNOTATION", "Mirror", "mirror_patch"]

logger = logging.getLogger(__name__)

ANNOTATION: Final = "kubetwin.devices.kubeedge.io/mirrored"
_RETRY_CAP_S: Final = 30.0


def mirror_patch(device: Object, status: Object | None, *, wanted: bool) -> Object:
    """The JSON merge patch of a Device; empty when there is nothing to write. `status`: its DeviceStatus."""
    current: Object = device.get("status") or {}
    annotations = (device.get("metadata") or {}).get("annotations") or {}
    marked = ANNOTATION in annotations
    if not wanted:
        if not marked:
            return {}
        gone = {name: None for name in MIRRORED if name in current}
        return {"metadata": {"annotations": {ANNOTATION: None}}, **({"status": gone} if gone else {})}
    shown = (status or {}).get("status")
    if status is None or not isinstance(shown, dict) or owner_uid(status) != identity(device):
        return {}  # not written yet
    changes: dict[str, Any] = {}
    for name in MIRRORED:
        if shown.get(name) != current.get(name):
            changes[name] = shown.get(name)
    if not changes:
        return {}
    return {"status": changes, **({} if marked else {"metadata": {"annotations": {ANNOTATION: "true"}}})}


class Mirror:
    """`note` at any time; `work` in as many tasks as writes may be in flight."""

    def __init__(
        self,
        client: KubeClient,
        devices: Informer,
        statuses: Informer,
        *,
        wanted: bool,
        writers: Writers | None = None,
    ) -> None:
        self.patches = 0
        self.failed = 0
        self._client = client
        self._devices = devices
        self._statuses = statuses
        self._wanted = wanted
        self._writers = writers or Alone()
        self._failures: dict[Key, int] = {}
        self._queue: KeyedQueue[Key] = KeyedQueue()

    def note(self, key: Key) -> None:
        """The Device or its DeviceStatus changed."""
        device = self._devices.get(key)
        if device is None:
            self._failures.pop(key, None)
        elif self._patch(key, device):
            self._queue.add(key)

    def close(self) -> None:
        self._queue.close()

    async def work(self) -> None:
        """Write what differs until cancelled."""
        while True:
            key = await self._queue.get()
            try:
                await self._writers.granted()
                await self._write(key)
                self._failures.pop(key, None)
            except NotFound:
                self._failures.pop(key, None)
            except KubeError as error:
                self._retry(key, error)
            except Exception:  # one device must not stop all others
                logger.exception("device %s: its status could not be mirrored", key)
                self._queue.add(key, delay_s=_RETRY_CAP_S)
            finally:
                self._queue.done(key)
            await asyncio.sleep(0)

    def _patch(self, key: Key, device: Object) -> Object:
        if not self._writers.writes_for(node_name(device)):
            return {}
        return mirror_patch(device, self._statuses.get(key), wanted=self._wanted)

    async def _write(self, key: Key) -> None:
        device = self._devices.get(key)
        patch = self._patch(key, device) if device is not None else {}
        if not patch:
            return
        self.patches += 1
        self._devices.observe(await self._client.patch(DEVICES, key, patch))

    def _retry(self, key: Key, error: KubeError) -> None:
        self.failed += 1
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if failures == 3 and not isinstance(error, Unavailable | TooManyRequests):
            logger.error("device %s: its status cannot be mirrored: %s; trying on", key, error)
        delay_s = min(_RETRY_CAP_S, 0.1 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._queue.add(key, delay_s=max(delay_s, min(error.retry_after_s, _RETRY_CAP_S)))
