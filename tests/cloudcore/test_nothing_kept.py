"""What is gone leaves nothing behind in CloudCore, however long it runs."""

import gc

import pytest

from cloudcore.cloudhub.session import Session
from cloudcore.devicecontroller import links
from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.devicecontroller.links import Links
from cloudcore.kube import Key
from cloudedge import Message
from tests.cloudcore.support import Cloud, Kubernetes, device, model, until


class Link:
    def __init__(self, node: str) -> None:
        self.node = node

    def post(self, message: Message, /) -> None: ...

    def put_object(self, message: Message, /) -> None: ...


def test_the_nodes_whose_loss_is_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_LOST", 3)
    now = 0.0
    known = Links(lambda: now, grace_s=10.0)
    now = 100.0
    for name in ("a", "b", "c", "a", "d"):
        known.connected(link := Link(name))
        assert known.disconnected(link)
    assert [known.lost_ms(name) > 0 for name in "abcd"] == [True, False, True, True]
    assert len(known._lost_at) == len(known._lost_ms) == 3
    assert known.grace_left_s("a") == 10.0
    assert known.grace_left_s("b") == 0.0


@pytest.mark.parametrize("first", (DEVICES, MODELS))
async def test_a_device_and_its_model_leave_nothing(kube: Kubernetes, cloud: Cloud, first: object) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    downstream = cloud.controller.downstream
    async with cloud.edge() as edge:
        await until(lambda: len(edge.objects("thermo-1")) == 1)
        order = [(DEVICES, "thermo-1"), (MODELS, "thermo")]
        for kind, name in order if first is DEVICES else order[::-1]:
            await kube.delete(kind, Key("default", name))
        await until(lambda: not any(downstream._last.values()), what="nothing is kept")
        await until(lambda: not cloud.controller.writer._records)
        assert not cloud.controller._declarations._known


async def test_a_connection_that_ended_does_not_wait_for_the_garbage_collection(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    gc.collect()
    gc.disable()
    try:
        async with cloud.edge() as edge:
            await until(lambda: len(edge.objects("thermo-1")) == 1)
            await edge.answer(await edge.report("thermo-1", {"valve": 5}))
        await until(lambda: not cloud.hub.nodes)
        await until(lambda: not any(isinstance(obj, Session) for obj in gc.get_objects()), what="its session goes")
    finally:
        gc.enable()
