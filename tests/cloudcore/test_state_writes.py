"""What states, conditions and deletions look like at the API, and what they cost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloudcore.devicecontroller import ControllerSettings, statuses
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.devicecontroller.render import render
from cloudcore.kube import Key, Kind, Object
from cloudcore.kube.stream import Event, EventStream
from cloudedge.message import now_ms
from tests.cloudcore.support import Cloud, Edge, Kubernetes, device, entry, model, running_cloud, until

KEY = Key("default", "thermo-1")


def valve(value: str, write: str = "applied") -> dict[str, Any]:
    desired = {"value": value, "metadata": {"timestamp": now_ms(), "write": write}}
    return {"valve": entry(value, expected=desired)}


def condition(status: Object, type_: str) -> tuple[str, str]:
    found = {c["type"]: c for c in status["extensions"]["conditions"]}[type_]
    return found["status"], found["reason"]


async def desire(kube: Kubernetes, value: str) -> None:
    spec = device()["spec"]
    spec["properties"][1]["desired"]["value"] = value
    await kube.patch(DEVICES, KEY, {"spec": {"properties": spec["properties"]}})


async def settled(edge: Edge) -> None:
    await edge.answer(await edge.report_state("thermo-1", "online"))
    await edge.answer(await edge.report("thermo-1", valve("1")))


async def test_in_sync_travels_with_the_twin_it_follows_from(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    settings = ControllerSettings(patch_interval_s=0.2)
    async with running_cloud(kube, certs, controller=settings) as cloud, cloud.edge() as edge:
        await settled(edge)
        await kube.until_status("thermo-1", lambda s: condition(s, "InSync") == ("True", "Applied"))
        kube.patched.clear()
        await desire(kube, "2")
        await until(lambda: edge.objects("thermo-1")[-1].data()["spec"]["properties"][1]["desired"]["value"] == "2")
        await edge.answer(await edge.report("thermo-1", valve("2")))
        status = await kube.status("thermo-1")
        assert condition(status, "InSync") == ("True", "Applied")
        assert len(kube.patched) == 1  # not one before it that says Pending, and makes this one wait
        await desire(kube, "3")  # which nobody takes care of
        await kube.until_status("thermo-1", lambda s: condition(s, "InSync") == ("False", "Pending"))
        assert len(kube.patched) == 2


async def test_a_steady_device_costs_no_writes(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        since = now_ms() - 60_000
        same = valve("1")

        async def heartbeat() -> None:
            content = {"device": {"name": "thermo-1", "state": "online", "since": since}}
            resource = "device/default/thermo-1/state/update"
            route = {"source": "twin", "group": "resource", "operation": "update"}
            await edge.answer(await edge.send(**route, resource=resource, content=content))
            await edge.answer(await edge.report("thermo-1", same))

        await heartbeat()
        await kube.until_status("thermo-1", lambda s: condition(s, "InSync") == ("True", "Applied"))
        kube.patched.clear()
        for _ in range(5):
            await asyncio.sleep(0.25)  # over a second: nothing shown is a clock
            await heartbeat()
        assert kube.patched == []
        assert (await kube.status("thermo-1"))["extensions"]["since"] < (await kube.status("thermo-1"))["extensions"][
            "conditions"
        ][2]["lastTransitionTime"]


async def test_a_property_deleted_at_the_edge_goes_from_the_api(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await settled(edge)
        await edge.answer(await edge.report("thermo-1", {"valve": {"metadata": {"type": "deleted"}}}))
        status = await kube.status("thermo-1")
        assert not status.get("twins")
        assert "summary" not in status["extensions"]
        old = entry("4", at_ms=now_ms() - 60_000)
        await edge.answer(await edge.report("thermo-1", {"valve": old}))
        assert not (await kube.status("thermo-1")).get("twins")
        await edge.answer(await edge.report("thermo-1", valve("7")))
        (twin,) = (await kube.status("thermo-1"))["twins"]
        assert twin["reported"]["value"] == "7"


async def test_what_was_written_is_not_looked_at_again(
    kube: Kubernetes, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online"))
        await until(lambda: not len(cloud.controller.writer._queue))
        rendered = 0

        def counted(*args: Any) -> Object:
            nonlocal rendered
            rendered += 1
            return render(*args)

        monkeypatch.setattr(statuses, "render", counted)
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        await until(lambda: not len(cloud.controller.writer._queue))
        assert rendered == 1


async def test_an_edit_that_our_own_write_overtakes_is_undone(
    kube: Kubernetes, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to our write has it in, and the watch comes too late to tell."""
    watching, edited = asyncio.Event(), False
    watching.set()
    look, write = EventStream.next, kube.patch

    async def look_when_told(stream: EventStream) -> Event | None:
        event = await look(stream)
        await watching.wait()
        return event

    async def write_after_an_edit(kind: Kind, of: Key, patch: Object) -> Object:
        nonlocal edited
        if kind is STATUSES and not edited and "twins" in patch["status"]:
            edited = True
            await write(STATUSES, KEY, {"status": {"extensions": {"summary": "all is well"}}})
        return await write(kind, of, patch)

    monkeypatch.setattr(EventStream, "next", look_when_told)
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        await until(lambda: not len(cloud.controller.writer._queue))
        summary = (await kube.status("thermo-1"))["extensions"]["summary"]
        monkeypatch.setattr(kube, "patch", write_after_an_edit)
        watching.clear()
        twin = entry("1", at_ms=now_ms() + 1)  # a new time and the same summary
        await edge.answer(await edge.report("thermo-1", {"valve": twin}))
        watching.set()
        assert edited
        await kube.until_status("thermo-1", lambda s: s["extensions"]["summary"] == summary)
