"""Changes of the API, acknowledgements, cuts and restarts of either side, in any order: at rest the node has what the
API says, and the records say what the node has.

The parts are the real ones, as far as they decide: the cloud's views, outbox and records, the edge's rules and store.
Time, sockets and the API server are the test's.
"""

import asyncio
import json
import sqlite3
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cloudcore.cloudhub.outbox import Outbox
from cloudcore.devicecontroller.declarations import Declarations
from cloudcore.devicecontroller.downstream import Downstream
from cloudcore.devicecontroller.index import DeviceIndex
from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import AlreadyExists, Key, Kind, KubeClient, NotFound, Object
from cloudcore.synccontroller import Records
from cloudedge import Message
from edgecore.devicetwin.messages import membership_request
from edgecore.devicetwin.sync import _inventory
from edgecore.metamanager.manager import _apply, acknowledgement
from edgecore.metamanager.rules import Membership, read_membership, read_object
from edgecore.store import delete_object, list_objects, object_keys
from edgecore.store.migrations import migrate
from tests.cloudcore.support import device, model

NODE = "edge-1"
NAMES = st.sampled_from(("a", "b", "c"))
THERMO = Key("default", "thermo")


class ApiOfRecords(KubeClient):
    """As much of an API server as records need, and their watch."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.records: Records | None = None
        self._version = 0

    def _stored(self, key: Key, obj: Object) -> Object:
        self._version += 1
        metadata = {**obj["metadata"], "uid": f"record-{key.name}", "resourceVersion": str(self._version)}
        self.objects[key] = {**obj, "metadata": metadata}
        return {**self.objects[key]}

    async def create(self, kind: Kind, obj: Object) -> Object:
        key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExists(str(key))
        return self._stored(key, obj)

    async def get(self, kind: Kind, key: Key) -> Object:
        if key not in self.objects:
            raise NotFound(str(key))
        return {**self.objects[key]}

    async def patch(self, kind: Kind, key: Key, patch: Object, **_: Any) -> Object:
        return self._stored(key, {**await self.get(kind, key), "status": patch["status"]})

    async def delete(self, kind: Kind, key: Key, **_: Any) -> None:
        if self.objects.pop(key, None) is None:
            raise NotFound(str(key))
        assert self.records is not None
        self.records._caches[True]._drop(key)


class Link:
    """A connection: what waits at the cloud, and what is on its way either way."""

    node = NODE

    def __init__(self) -> None:
        self.outbox = Outbox(window=2)
        self.down: list[Message] = []
        self.up: list[Message] = []
        self.now = 0.0

    def post(self, message: Message) -> None:
        self.outbox.post(message)

    def put_object(self, message: Message) -> None:
        self.outbox.put_object(message)

    def write(self) -> None:
        while (message := self.outbox.next(self.now)) is not None:
            self.down.append(message)


class Machine(RuleBasedStateMachine):
    says = True
    """Whether the node says what it has; upstream's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.api: dict[Key, Object] = {}
        self.models: dict[Key, Object] = {}
        self.events: list[tuple[Kind, Key, Object | None]] = []
        self.version = 0
        self.made = 0
        self.kube = ApiOfRecords()
        self.link: Link | None = None
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.db)
        self.on_loop(self.start_cloud)

    def on_loop(self, job: Any) -> None:
        async def run() -> None:
            result = job()
            if asyncio.iscoroutine(result):
                await result

        self.loop.run_until_complete(run())

    @initialize()
    def begin(self) -> None:
        """A node at work, so that what follows is about changes."""
        self.declare_model(0)
        for name in ("a", "b"):
            self.declare(name, 0, NODE)
        self.on_loop(self.come_to_rest)

    @rule()
    def flow(self) -> None:
        """Everything gets through, if there is a connection."""
        if self.link is not None:
            self.on_loop(self.come_to_rest)

    # The API.

    def store(self, kind: Kind, obj: Object | None, key: Key) -> None:
        objects = self.api if kind is DEVICES else self.models
        self.version += 1
        if obj is None:
            del objects[key]
        else:
            before = objects.get(key)
            if before is None:
                self.made += 1
            uid = before["metadata"]["uid"] if before is not None else f"uid-{self.made}"
            metadata = {"name": key.name, "namespace": key.namespace, "uid": uid, "resourceVersion": str(self.version)}
            objects[key] = obj = {**obj, "metadata": metadata}
        self.events.append((kind, key, obj))

    @rule(name=NAMES, value=st.integers(0, 3), node=st.sampled_from((NODE, NODE, NODE, "elsewhere")))
    def declare(self, name: str, value: int, node: str) -> None:
        obj = device(name, nodeName=node, properties=[{"name": "valve", "desired": {"value": str(value)}}])
        self.store(DEVICES, obj, Key("default", name))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if (key := Key("default", name)) in self.api:
            self.store(DEVICES, None, key)

    @rule(minimum=st.integers(0, 2))
    def declare_model(self, minimum: int) -> None:
        properties = [{"name": "valve", "type": "INT", "accessMode": "ReadWrite", "minimum": str(minimum)}]
        self.store(MODELS, model(properties=properties), THERMO)

    # The cloud.

    def start_cloud(self) -> None:
        self.link = None
        self.records = self.kube.records = Records(self.kube)
        for record in self.kube.objects.values():
            self.records._caches[True]._take({**record})
        self.events.clear()  # it lists
        self.cache, self.cached_models = dict(self.api), dict(self.models)
        self.index = DeviceIndex()
        for key, obj in self.cache.items():
            self.index.change(key, None, obj)
        self.seen = {DEVICES: self.version, MODELS: self.version}
        self.declarations = Declarations(self.cache.get, self.cached_models.get)
        self.downstream = Downstream(
            self.cache.get,
            self.cached_models.get,
            self.index.of_node,
            self.declarations,
            progress=self.seen.__getitem__,
            records=self.records,
        )
        self.downstream.caches_complete()

    @rule()
    def watch(self) -> None:
        """One event of the watch."""
        if self.events:
            self.on_loop(self.deliver)

    def deliver(self) -> None:
        kind, key, new = self.events.pop(0)
        if kind is DEVICES:
            old = self.cache.pop(key, None)
            if new is not None:
                self.cache[key] = new
            self.index.change(key, old, new)
            self.declarations.forget(key)
            self.downstream.device_changed(key, old, new)
        else:
            assert new is not None
            self.cached_models[key] = new
            users = self.index.of_model(key)
            for user in users:
                self.declarations.forget(user)
            self.downstream.model_changed(key, users)
        self.seen[kind] += 1  # at least this: numbers have gaps where the other kind changed

    async def write_records(self) -> None:
        for id_ in list(self.records._wishes):
            while id_ in self.records._wishes:
                await self.records._write(id_)

    @rule()
    def write_some_records(self) -> None:
        self.on_loop(self.write_records)

    @rule()
    def restart_cloud(self) -> None:
        if not self.says:  # a record that was not written yet is missed for upstream's edge core
            self.take_acknowledgements()
            self.on_loop(self.write_records)
        self.on_loop(self.downstream.close)
        self.on_loop(self.start_cloud)

    @rule()
    def compare(self) -> None:
        self.on_loop(lambda: self.downstream.reconcile(NODE))

    # The node.

    @rule()
    def connect(self) -> None:
        """Also over a connection that it believes to be dead."""
        self.on_loop(self.connect_now)

    def connect_now(self) -> None:
        self.link = link = Link()
        self.downstream.connected(link)
        self.downstream.request(link, membership_request(NODE, _inventory(self.db) if self.says else None))
        view = self.downstream._views[NODE]
        if not view.ready:  # held for caches that are behind
            while self.events:
                self.deliver()
            self.seen = {DEVICES: self.version, MODELS: self.version}
            self.downstream._progress = self.seen.__getitem__
            self.downstream._tell_when_seen(view)

    @rule()
    def cut(self) -> None:
        if self.link is not None:
            link, self.link = self.link, None
            self.on_loop(lambda: self.downstream.disconnected(link))

    @rule(count=st.integers(1, 6), acknowledges=st.booleans())
    def receive(self, count: int, acknowledges: bool) -> None:
        """The node takes some messages; acknowledgements may be on their way for long."""
        if self.link is None:
            return
        self.link.write()
        for message in self.link.down[:count]:
            self.take(message)
        del self.link.down[:count]
        if acknowledges:
            self.take_acknowledgements()

    def take_acknowledgements(self) -> None:
        link = self.link
        while link is not None and link.up:
            answered = link.outbox.acknowledge(link.up.pop(0).header.parent_msg_id, link.now)
            if answered is not None:
                self.downstream.acknowledged(link, answered.message)

    def take(self, message: Message) -> None:
        if message.route.group == "twin":
            task = None if message.header.parent_msg_id else read_membership(message)
            if task is not None:
                self.take_membership(task)
            return
        assert self.link is not None
        self.db.execute("BEGIN")
        _apply(self.db, read_object(message))
        self.db.execute("COMMIT")
        self.link.up.append(acknowledgement(message))

    def take_membership(self, task: Membership) -> None:
        if self.says:
            _apply(self.db, task)
            return
        for namespace, name in object_keys(self.db, "device"):  # upstream's keeps the models
            if (namespace, name) not in task.devices:
                delete_object(self.db, "device", namespace, name)

    @rule()
    def lose_store(self) -> None:
        self.db.execute("DELETE FROM object")
        self.connect()

    # At rest.

    def teardown(self) -> None:
        try:
            self.on_loop(self.come_to_rest)
            self.check()
        finally:
            self.on_loop(self.downstream.close)
            self.on_loop(self.records._queue.close)
            self.db.close()
            self.loop.close()

    async def come_to_rest(self) -> None:
        while self.events:
            self.deliver()
        if self.link is None:
            self.connect_now()
        for _ in range(8):
            assert self.link is not None
            while len(self.link.outbox) or self.link.down or self.link.up:
                self.link.now += 100.0
                self.link.write()
                while self.link.down:
                    self.take(self.link.down.pop(0))
                self.take_acknowledgements()
            await self.write_records()
            self.downstream.reconcile(NODE)

    def check(self) -> None:
        assert self.link is not None
        assert not len(self.link.outbox), "at rest nothing is sent"
        mine = {key: obj for key, obj in self.api.items() if obj["spec"]["nodeName"] == NODE and THERMO in self.models}
        found = {Key(o.namespace, o.name): o for o in list_objects(self.db, "device")}
        assert {key: (o.uid, o.version) for key, o in found.items()} == {
            key: (obj["metadata"]["uid"], self.last_version(key, obj, found)) for key, obj in mine.items()
        }
        there = {**found, **{Key(o.namespace, o.name): o for o in list_objects(self.db, "devicemodel")}}
        if mine:
            assert there[THERMO].uid == self.models[THERMO]["metadata"]["uid"]
        elif self.says:
            assert THERMO not in there
        recorded = {k.name: o["status"]["objectResourceVersion"] for k, o in self.kube.objects.items()}
        assert recorded == {f"{NODE}.{o.uid}": o.version for o in there.values() if self.says or o.kind == "device"} | {
            name: version for name, version in recorded.items() if not self.says and self.is_model(name)
        }

    def is_model(self, record: str) -> bool:
        return THERMO in self.models and record.endswith(self.models[THERMO]["metadata"]["uid"])

    def last_version(self, key: Key, obj: Object, found: dict[Key, Any]) -> str:
        """A declaration that says what the one before said is not sent: then the earlier version is right."""
        if key in found and read_spec(found[key].body) == obj["spec"]:
            return str(found[key].version)
        return str(obj["metadata"]["resourceVersion"])


def read_spec(body: bytes) -> Any:
    return json.loads(body)["spec"]


class StockMachine(Machine):
    says = False


LIMITS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def test_a_node_that_says_what_it_has() -> None:
    run_state_machine_as_test(Machine, settings=LIMITS)


def test_a_node_of_upstream() -> None:
    run_state_machine_as_test(StockMachine, settings=LIMITS)


def test_a_model_outlives_its_last_device_for_one_that_is_still_to_come() -> None:
    machine = Machine()
    machine.begin()
    machine.delete("a")
    machine.cut()
    machine.delete("b")
    machine.declare("c", 0, NODE)
    machine.teardown()
