"""The fleet while a registration and calls of the edge core overlap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from dmi.types import DeviceId, DeviceModel, ModelProperty
from mappers.sdk import fleet as module
from mappers.sdk.device import DeviceRunner
from mappers.sdk.fleet import Fleet
from mappers.sdk.uplink import Uplink
from tests.mappers.mapper_world import MODEL, MemoryDevice, MemoryDriver, eventually, memory_device, prop, wanting
from tests.mappers.runner_world import Recorder
from tests.mappers.test_sdk_uplink import Peer

ID = DeviceId("plant/m1")
DEVICE = memory_device(prop("target", cell="a"))


@asynccontextmanager
async def memory_fleet(**devices: MemoryDevice) -> AsyncIterator[tuple[Fleet, Uplink, Peer]]:
    """A fleet whose reports wait for `uplink.open()`."""
    peer = Peer()
    uplink = Uplink(peer)
    sending = asyncio.create_task(uplink.run())
    try:
        async with Fleet(MemoryDriver(**devices), uplink) as fleet:
            yield fleet, uplink, peer
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def test_a_model_of_the_same_name_is_not_the_device() -> None:
    async with memory_fleet(m1=MemoryDevice(a=1)) as (fleet, _, _):
        fleet.begin_registration()
        await fleet.apply_model(msgspec.structs.replace(MODEL, name="m1"))  # the id of the device, too
        await fleet.reconcile([DEVICE], [MODEL])
        assert [d.id for d in fleet.devices] == [ID]


async def test_what_is_called_while_devices_stop_is_newer_than_the_registration() -> None:
    stopping = asyncio.Event()

    class Slow(MemoryDriver):
        @asynccontextmanager
        async def connect(self, device_id, config):  # type: ignore[no-untyped-def]  # as the base has it
            try:
                async with super().connect(device_id, config) as link:
                    yield link
            finally:
                if config.name == "gone":
                    stopping.set()
                    await asyncio.sleep(0.05)

    old, new = DEVICE, wanting(DEVICE, target="7")
    peer = Peer()
    gone, memory = MemoryDevice(a=1), MemoryDevice(a=1)
    async with Fleet(Slow(m1=memory, gone=gone), Uplink(peer)) as fleet:
        await fleet.apply_model(MODEL)
        await fleet.apply_device(memory_device(prop("target", cell="a"), name="gone"))
        await eventually(lambda: gone.reads > 0)
        fleet.begin_registration()
        reconciling = asyncio.create_task(fleet.reconcile([old], [MODEL]))
        await stopping.wait()
        await fleet.apply_device(new)
        await reconciling
        assert list(fleet.devices) == [new]


async def test_a_device_added_while_it_is_removed_is_reported() -> None:
    memory = MemoryDevice(a=1)
    async with memory_fleet(m1=memory) as (fleet, uplink, peer):
        await fleet.apply_model(MODEL)
        await fleet.apply_device(DEVICE)
        await eventually(lambda: memory.reads > 0)
        removing = asyncio.create_task(fleet.remove_device(ID))
        await asyncio.sleep(0)  # the removal has begun
        memory.hold.clear()
        await fleet.apply_device(wanting(DEVICE, target="500"))  # above the maximum: reported without a read
        await removing
        uplink.open()
        await eventually(lambda: bool(peer.got), timeout_s=2)
        memory.hold.set()


async def test_one_device_that_cannot_be_started_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(DeviceRunner):
        def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]  # passed on
            super().__init__(*args, **kwargs)
            if self.id != ID:
                raise RuntimeError("boom")

    monkeypatch.setattr(module, "DeviceRunner", Broken)
    async with memory_fleet(m1=MemoryDevice(a=1), m0=MemoryDevice(a=1)) as (fleet, _, _):
        with caplog.at_level(logging.ERROR):
            await fleet.reconcile([memory_device(prop("target", cell="a"), name="m0"), DEVICE], [MODEL])
        assert [d.id for d in fleet.devices] == [ID]
    assert "plant/m0" in caplog.text


async def test_a_bound_that_is_no_number_fails_the_write_with_a_reason() -> None:
    odd = DeviceModel("plant", "meter", properties=(ModelProperty("target", "INT", minimum="NaN"),))
    async with memory_fleet(m1=MemoryDevice(a=1)) as (fleet, _, _):
        await fleet.reconcile([wanting(DEVICE, target="5")], [odd])
        _, (twin,) = await fleet.get_device(ID)
        assert twin.desired.write == "failed"
        assert "NaN" in twin.desired.reason


async def test_a_fleet_shows_its_runners_their_samples_and_what_became_of_their_reports() -> None:
    samples = Recorder()
    peer = Peer()
    uplink = Uplink(peer)
    sending = asyncio.create_task(uplink.run())
    device = msgspec.structs.replace(
        DEVICE, properties=(msgspec.structs.replace(DEVICE.properties[0], push_method={"mqtt": {}}),)
    )
    async with Fleet(MemoryDriver(m1=MemoryDevice(a=7)), uplink, samples) as fleet:
        uplink.open()
        assert (fleet.protocol, fleet.find(ID), list(fleet.runners())) == ("memory", None, [])
        await fleet.reconcile([device], [MODEL])
        runner = fleet.find(ID)
        assert runner is not None
        assert list(fleet.runners()) == [runner]
        await eventually(lambda: bool(samples.samples) and runner.stats.reported_ms > 0)
        assert (samples.samples[0].device, samples.samples[0].value) == (ID, "7")
        assert runner.stats.reported_ms >= samples.samples[0].collected_ms
        assert samples.forgotten == []
        await fleet.remove_device(ID)
        assert samples.forgotten == [ID]
        assert sum(fleet.retired_latency.counts) == runner.stats.reads > 0
    sending.cancel()
    await asyncio.wait([sending])
