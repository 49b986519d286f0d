"""From the API to nodes: each connected node has the devices that are bound to it, and their models.

Per node a view remembers what this connection has been told. A change is compared with it, so events may repeat, be
merged or come late. A new connection starts from what the node says it has, and is told the difference when it asks for
its membership; one that does not say it is told everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from cloudcore.devicecontroller.budget import Budget
from cloudcore.devicecontroller.declarations import Declarations
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, model_key, node_name
from cloudcore.devicecontroller.links import NodeLink
from cloudcore.devicecontroller.messages import (
    Operation,
    delete_message,
    detail_message,
    membership_message,
    object_message,
    ok,
)
from cloudcore.devicecontroller.views import (
    KINDS,
    NodeRecords,
    NoRecords,
    View,
    compare,
    newest,
    path_of,
    resource_of,
)
from cloudcore.kube import Key, Kind, Object, identity, resource_version, spec_of
from cloudedge import MalformedMessage, Message
from cloudedge.inventory import read_inventory
from dmi.metrics import Metrics

__all__ = ["Downstream"]

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 5.0
"""Edge cores ask for their membership at once; one that does not is told anyway."""
HOLD_S: Final = 10.0
"""How long a node waits for caches that have not seen yet what it has from another replica. In a cluster that was made
anew they never will: versions start at 1 again."""
LOOK_AGAIN_S: Final = 0.1
MAX_DELETIONS: Final = 500
"""Of what a node says it has and should not, at a time; the rest with the next comparisons. A node may say anything."""
SWEEP_EVERY: Final = 6
"""Comparisons of a node until its records are gone through again."""


class Downstream:
    """Nothing here waits: messages go into the nodes' outboxes, which keep the newest per object."""

    def __init__(
        self,
        find_device: Callable[[Key], Object | None],
        find_model: Callable[[Key], Object | None],
        devices_of: Callable[[str], Iterable[Key]],
        declarations: Declarations,
        *,
        progress: Callable[[Kind], int] = lambda _: 2**64,
        told: Callable[[str], None] = lambda _: None,
        records: NodeRecords | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`progress`: up to which resourceVersion all objects of a kind are known here. `told` is called with a
        node when it has been told everything.
        """
        self._count = (metrics or Metrics()).counter(
            "kubetwin_cloudcore_device_objects_total",
            "Devices and models for nodes: sent, and found to be there already.",
            "operation",
        )
        self._progress = progress
        self._told = told
        self._records = records or NoRecords()
        self._last: dict[Kind, dict[Key, Object]] = {DEVICES: {}, MODELS: {}}
        """As sent last to any node, over its connections."""
        self._find_device = find_device
        self._find_model = find_model
        self._devices_of = devices_of
        self._declarations = declarations
        self._complete = False
        self._sent = self._deleted = 0
        self._views: dict[str, View] = {}
        self._budget = Budget(asyncio.get_running_loop().time)

    def connected(self, link: NodeLink) -> None:
        """Start anew with this connection of the node."""
        if (before := self._views.pop(link.node, None)) is not None:
            before.timer.cancel()
        timer = asyncio.get_running_loop().call_later(ASK_TIMEOUT_S, self._ask, link.node)
        self._views[link.node] = View(link, timer)

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
        if view is None or view.link is not link:
            return
        view.request = message
        loop = asyncio.get_running_loop()
        if (wait_s := self._budget.wait_s(link.node)) > 0:
            view.timer.cancel()
            view.timer = loop.call_later(wait_s, self._take_request, view)
        else:
            self._take_request(view)

    def _take_request(self, view: View) -> None:
        node, request = view.link.node, view.request
        if request is None:
            return
        try:
            view.inventory = read_inventory(request).objects
        except MalformedMessage as error:
            logger.warning("node %s: %s; it is sent everything", node, error)
            view.inventory = None
        self._budget.spend(node, len(view.inventory or ()) // 10)  # comparing is cheap
        view.hold_until = asyncio.get_running_loop().time() + HOLD_S
        self._ask(node)

    def is_behind(self, link: NodeLink) -> bool:
        """Whether the node has what is not known here yet: then its reports cannot be judged."""
        view = self._views.get(link.node)
        return view is not None and view.link is link and view.request is not None

    def acknowledged(self, link: NodeLink, message: Message) -> None:
        """The node has stored, or deleted, what an object message of ours was about."""
        if path_of(message.route.resource) is None:
            return
        self._records.acknowledged(link.node, message)
        view = self._views.get(link.node)
        if view is not None and message.route.operation == "delete":
            view.deleting.discard(message.route.resource)

    @property
    def told_nodes(self) -> Collection[str]:
        """Connected, and told of everything once."""
        return [node for node, view in self._views.items() if view.ready]

    def reconcile(self, node: str) -> tuple[int, int]:
        """Compare what the node was told with the caches, and tell it what it lacks. How many objects are sent, and how
        many of these are deletions. With nothing to tell it costs about a microsecond for each device.
        """
        view = self._views.get(node)
        if view is None or not view.ready:
            return 0, 0
        sent, deleted = self._sent, self._deleted
        for key in {**view.members, **dict.fromkeys(self._devices_of(node))}:
            device, told = self._find_device(key), view.devices.get(key)
            model = model_key(key, told) if told is not None else None
            if (
                told is None
                or told is not device
                or model is None
                or view.models.get(model) is not self._find_model(model)
            ):
                self._refresh(view, key)
        if view.has:
            self._delete_others(view)
        view.rounds += 1
        if view.rounds % SWEEP_EVERY == 1:
            self._sweep(view)
        return self._sent - sent, self._deleted - deleted

    def caches_complete(self) -> None:
        """From now on views are told; those that have asked meanwhile are answered."""
        self._complete = True
        for view in self._views.values():
            if view.asked:
                try:
                    self._tell_when_seen(view)
                except Exception:  # one odd object must not end the process
                    logger.exception("node %s could not be told of its devices", view.link.node)

    def device_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        if new is None:
            self._last[DEVICES].pop(key, None)
        for node in {node_name(obj) for obj in (old, new) if obj is not None}:
            view = self._views.get(node)
            if view is not None and view.ready:
                self._refresh(view, key)

    def model_changed(self, key: Key, users: Iterable[Key]) -> None:
        """The model of these devices has changed, is there at last, or is gone."""
        if self._find_model(key) is None:
            self._last[MODELS].pop(key, None)
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
            self._tell_when_seen(view)

    def _tell_when_seen(self, view: View) -> None:
        """Once our caches have seen what the node has: another replica may have sent it what is news here, and must not
        be contradicted.
        """
        loop = asyncio.get_running_loop()
        has = view.inventory or {}
        if any(newest(has, kind) > self._progress(kind) for kind in KINDS.values()) and loop.time() < view.hold_until:
            view.timer.cancel()
            view.timer = loop.call_later(LOOK_AGAIN_S, self._tell_when_seen, view)
            return
        self._tell_all(view)

    def _tell_all(self, view: View) -> None:
        """Confirmation, complete list, then every model and device that the node lacks."""
        if view.request is not None:
            view.link.post(ok(view.request))
            view.request = None
        view.forget()
        view.ready = True
        view.rounds = 0
        view.has = dict(view.inventory or {})
        node = view.link.node
        members = {key: device for key in self._devices_of(node) if (device := self._find_device(key))}
        self._budget.spend(node, len(members))
        view.link.post(detail_message(members))
        view.members.update(members)
        before = self._sent
        for key in members:
            # As updates: an edge core skips one that it has already, and takes an unknown one as new (contract 10).
            self._send_device(view, key, members[key], new="update")
        self._delete_others(view)
        self._sweep(view)
        logger.log(
            logging.INFO if members or self._sent != before else logging.DEBUG,  # most nodes of a large fleet have none
            "node %s: told of %d devices, %d of them deliverable, with %d models; %d objects sent, as it %s",
            node,
            len(members),
            len(view.devices),
            len(view.models),
            self._sent - before,
            "lacked them" if view.inventory is not None else "does not say what it has",
        )
        view.inventory = None if view.inventory is None else {}
        self._told(node)

    def _delete_others(self, view: View) -> None:
        """What the node says it has, and should not. What it should have and cannot be sent now, it keeps."""
        used = {model_key(key, device) for key, device in view.members.items()}
        left = MAX_DELETIONS
        for resource, has in list(view.has.items()):
            found = path_of(resource)
            if found is not None:
                kind, key = found
                if key in (view.members if kind is DEVICES else used):
                    continue
                if not left:
                    return
                left -= 1
                self._put(view, delete_message(kind, key, uid=has.uid, version=has.version))
            del view.has[resource]

    def _sweep(self, view: View) -> None:
        """What the records say the node has, and should not: it is deleted. Of a node that says what it has, and not
        that, the record is.
        """
        node = view.link.node
        used = {model_key(key, device) for key, device in view.members.items()}
        for record in self._records.known(node, KINDS):
            kind, key = KINDS[record.kind], Key(record.namespace, record.name)
            told = view.told(kind).get(key)
            if told is not None:
                uid = identity(told)
                if uid != record.uid and self._records.get(node, uid) is not None:
                    self._records.forget(node, record.uid)  # its successor of the same name took its place
            elif key in (view.members if kind is DEVICES else used) or resource_of(kind, key) in view.deleting:
                continue
            elif view.inventory is not None:
                self._records.forget(node, record.uid)
            elif record.uid not in view.swept:
                view.swept.add(record.uid)
                self._put(view, delete_message(kind, key, uid=record.uid, version=record.version))

    def _refresh(self, view: View, key: Key) -> None:
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

    def _send_device(self, view: View, key: Key, device: Object, *, new: Operation = "insert") -> None:
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
        if self._send(view, DEVICES, key, device, new):
            view.uses[wanted_model] += 1
            if told is not None:
                self._unuse(view, key, told)

    def _send_model(self, view: View, key: Key) -> None:
        model, told = self._find_model(key), view.models.get(key)
        if model is None or (
            told is not None and identity(told) == identity(model) and spec_of(told) == spec_of(model)
        ):
            return
        # A mapper refuses the update of a model that it does not know (device contract 10).
        self._send(view, MODELS, key, model, "insert")

    def _send(self, view: View, kind: Kind, key: Key, obj: Object, new: Operation) -> bool:
        """Unless the node has it; then it counts as told. False: it has a newer one, and is not told."""
        told, last = view.told(kind), self._last[kind]
        operation: Operation = "update" if key in told else new
        if view.has and (has := view.has.pop(resource := resource_of(kind, key), None)) is not None:
            match compare(has, obj, last.get(key)):
                case "same":
                    told[key] = obj
                    if resource_version(obj) == has.version:
                        last[key] = obj
                    self._count.add("unchanged")
                    self._records.stored(view.link.node, obj, has.version)
                    return True
                case "ahead":
                    view.has[resource] = has
                    return False
                case "other":
                    operation = "update"
        told[key] = last[key] = obj
        self._put(view, object_message(operation, kind, key, obj))
        return True

    def _put(self, view: View, message: Message) -> None:
        operation = message.route.operation
        self._sent += 1
        self._count.add(operation)
        if operation == "delete":
            self._deleted += 1
            view.deleting.add(message.route.resource)
        else:
            view.deleting.discard(message.route.resource)
        view.link.put_object(message)

    def _remove(self, view: View, key: Key, device: Object) -> None:
        del view.members[key]
        view.link.post(membership_message(removed=[(key, device)]))
        view.has.pop(resource_of(DEVICES, key), None)
        told = view.devices.pop(key, None)
        self._put(view, object_message("delete", DEVICES, key, told or device))
        if told is not None:
            self._unuse(view, key, told)

    def _unuse(self, view: View, key: Key, told: Object) -> None:
        """One told device less of its model; the last one takes the model with it."""
        model = model_key(key, told)
        if model is None:
            return
        view.uses[model] -= 1
        if view.uses[model] <= 0:
            del view.uses[model]
            if (last := view.models.pop(model, None)) is not None:
                self._put(view, object_message("delete", MODELS, model, last))
