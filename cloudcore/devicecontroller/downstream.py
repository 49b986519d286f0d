"""From the API to nodes: each connected node has the devices that are bound to it, and their models.

Per node a view remembers what this connection has been told. A change is compared with it, so events may repeat, be
merged or come late; a new connection starts from nothing and is told everything when it asks for its membership.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from cloudcore.devicecontroller.declarations import Declarations
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, model_key, node_name
from cloudcore.devicecontroller.links import NodeLink
from cloudcore.devicecontroller.messages import Operation, detail_message, membership_message, object_message, ok
from cloudcore.kube import Key, Object, identity, spec_of
from cloudedge import Message

__all__ = ["Downstream"]

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 5.0
"""Edge cores ask for their membership at once; one that does not is told anyway."""


class _View:
    """What one connection of a node has been told."""

    def __init__(self, link: NodeLink, timer: asyncio.TimerHandle) -> None:
        self.link = link
        self.timer = timer
        self.asked = False
        self.request: Message | None = None
        self.ready = False
        """Told everything once; changes are told from then on."""
        self.forget()

    def forget(self) -> None:
        self.members: dict[Key, Object] = {}
        self.devices: dict[Key, Object] = {}
        self.models: dict[Key, Object] = {}
        self.uses: Counter[Key] = Counter()
        """Told devices by model."""


class Downstream:
    """Nothing here waits: messages go into the nodes' outboxes, which keep the newest per object."""

    def __init__(
        self,
        find_device: Callable[[Key], Object | None],
        find_model: Callable[[Key], Object | None],
        devices_of: Callable[[str], Iterable[Key]],
        declarations: Declarations,
    ) -> None:
        self._find_device = find_device
        self._find_model = find_model
        self._devices_of = devices_of
        self._declarations = declarations
        self._complete = False
        self._views: dict[str, _View] = {}

    def connected(self, link: NodeLink) -> None:
        """Start anew with this connection of the node."""
        if (before := self._views.pop(link.node, None)) is not None:
            before.timer.cancel()
        timer = asyncio.get_running_loop().call_later(ASK_TIMEOUT_S, self._ask, link.node)
        self._views[link.node] = _View(link, timer)

    def disconnected(self, link: NodeLink) -> None:
        view = self._views.get(link.node)
        if view is not None and view.link is link:
            view.timer.cancel()
            del self._views[link.node]

    def close(self) -> None:
        for view in self._views.values():
            view.timer.cancel()

    def request(self, link: NodeLink, message: Message) -> None:
        """The node asks for its membership; it is answered once the caches are complete, never from a partial list."""
        view = self._views.get(link.node)
        if view is not None and view.link is link:
            view.request = message
            self._ask(link.node)

    def caches_complete(self) -> None:
        """From now on views are told; those that have asked meanwhile are answered."""
        self._complete = True
        for view in self._views.values():
            if view.asked:
                self._tell_all(view)

    def device_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        for node in {node_name(obj) for obj in (old, new) if obj is not None}:
            view = self._views.get(node)
            if view is not None and view.ready:
                self._refresh(view, key)

    def model_changed(self, users: Iterable[Key]) -> None:
        """The model of these devices has changed, or is there at last."""
        for user in users:
            device = self._find_device(user)
            view = self._views.get(node_name(device)) if device is not None else None
            if view is not None and view.ready:
                self._refresh(view, user)

    def _ask(self, node: str) -> None:
        view = self._views[node]
        view.timer.cancel()
        view.asked = True
        if self._complete:
            self._tell_all(view)

    def _tell_all(self, view: _View) -> None:
        """Confirmation, complete list, then every model and device."""
        if view.request is not None:
            view.link.post(ok(view.request))
            view.request = None
        view.forget()
        view.ready = True
        members = {key: device for key in self._devices_of(view.link.node) if (device := self._find_device(key))}
        view.link.post(detail_message(members))
        view.members.update(members)
        for key in members:
            # As updates: an edge core skips one that it has already, and takes an unknown one as new (contract 10).
            self._send_device(view, key, members[key], new="update")
        logger.info(
            "node %s: told of %d devices, %d of them and %d models in full",
            view.link.node,
            len(members),
            len(view.devices),
            len(view.models),
        )

    def _refresh(self, view: _View, key: Key) -> None:
        device = self._find_device(key)
        if device is not None and node_name(device) != view.link.node:
            device = None
        before = view.members.get(key)
        if before is not None and (device is None or identity(device) != identity(before)):
            self._remove(view, key, before)
            before = None
        if device is None:
            return
        view.members[key] = device
        if before is None:
            view.link.post(membership_message(added=[(key, device)]))
        self._send_device(view, key, device)

    def _send_device(self, view: _View, key: Key, device: Object, *, new: Operation = "insert") -> None:
        """Model, if the view lacks this one, then device, if it differs from what was told.

        What an edge core could not take is not sent: it keeps the last good version, if it has one.
        """
        declared = self._declarations.get(key)
        wanted_model = model_key(key, device)
        if declared is None or not declared.deliverable or wanted_model is None:
            return
        self._send_model(view, wanted_model)
        told = view.devices.get(key)
        if told is not None and spec_of(told) == spec_of(device):
            return
        view.devices[key] = device
        view.uses[wanted_model] += 1
        view.link.put_object(object_message(new if told is None else "update", DEVICES, key, device))
        if told is not None:
            self._unuse(view, key, told)

    def _send_model(self, view: _View, key: Key) -> None:
        model, told = self._find_model(key), view.models.get(key)
        if model is None or (
            told is not None and identity(told) == identity(model) and spec_of(told) == spec_of(model)
        ):
            return
        view.models[key] = model
        # A mapper refuses the update of a model that it does not know (device contract 10).
        view.link.put_object(object_message("insert" if told is None else "update", MODELS, key, model))

    def _remove(self, view: _View, key: Key, device: Object) -> None:
        del view.members[key]
        view.link.post(membership_message(removed=[(key, device)]))
        told = view.devices.pop(key, None)
        view.link.put_object(object_message("delete", DEVICES, key, told or device))
        if told is not None:
            self._unuse(view, key, told)

    def _unuse(self, view: _View, key: Key, told: Object) -> None:
        """One told device less of its model; the last one takes the model with it."""
        model = model_key(key, told)
        if model is None:
            return
        view.uses[model] -= 1
        if view.uses[model] <= 0:
            del view.uses[model]
            if (last := view.models.pop(model, None)) is not None:
                view.link.put_object(object_message("delete", MODELS, model, last))
