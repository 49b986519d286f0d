"""What a device's refusals and silences teach, and that it is remembered: pure, and with the simulator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor, learned
from mappers.drivers.modbus.learned import SURE_AFTER, Learned
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk import DeviceId, DeviceProtocolError, DeviceRejected, DeviceTimeout, DeviceUnreachable, silence
from tests.mappers.modbus_world import DEVICE, PropertyOf, linked, property_

HOLDING = Image(
    coils=dict.fromkeys(range(40), True), holding_registers={a: a for a in range(100)}, input_registers={0: 1, 1: 2}
)


def registers(*addresses: int) -> tuple[PropertyOf, ...]:
    return tuple(property_(f"r{a}", "HoldingRegister", a) for a in addresses)


def config(device: Simulator, **rest: Any) -> ModbusConfig:
    driver = ModbusDriver()
    return driver.check_config(ModbusConfig("127.0.0.1", port=device.port, slave_id=1, **{"timeout": 150, **rest}))


async def read(link: ModbusLink, wanted: Sequence[PropertyOf]) -> dict[str, Any]:
    return dict(await link.read_many(tuple(wanted)))


# pure


@given(st.sets(st.integers(0, 300), min_size=1, max_size=60), st.data())
def test_an_ignored_address_is_found_and_only_its_properties_stay_unread(
    addresses: set[int], data: st.DataObject
) -> None:
    """However often it takes: the rest is read in requests without it, and it is asked for alone."""
    bad = data.draw(st.sampled_from(sorted(range(min(addresses), max(addresses) + 1))))
    items = [(f"r{a}", ModbusVisitor("HoldingRegister", a, limit=1)) for a in sorted(addresses)]
    known = Learned()
    for _ in range(20):
        for request in known.plan(items):
            if request.start <= bad < request.end:
                known.ignored(request, 0.0)
            else:
                known.answered(request)
    unread = {name for r in known.plan(items) if r.start <= bad < r.end for name, _ in r.items}
    assert unread == {f"r{a}" for a in addresses if a == bad}


def test_chance_does_not_take_a_plan_to_pieces() -> None:
    items = [(f"r{a}", ModbusVisitor("HoldingRegister", a, limit=1)) for a in range(10)]
    known = Learned()
    (request,) = known.plan(items)
    for _ in range(10):
        known.missed(request)
        for now in range(SURE_AFTER - 2):
            assert not known.ignored(request, float(now))
        known.answered(request)
    assert not known.doubts
    assert known.plan(items) == (request,)


def test_an_ignored_request_is_tried_less_and_less_often() -> None:
    items = [("r", ModbusVisitor("HoldingRegister", 0, limit=1))]
    known, now, pauses = Learned(), 0.0, []
    (request,) = known.plan(items)
    for _ in range(9):
        known.ignored(request, now)
        pauses.append(known.doubts[request.key].until - now)
        now += pauses[-1]
    assert pauses[0] <= 1.0
    assert 48 <= pauses[-1] <= 60


# with a device


@pytest.fixture
async def device() -> Any:
    async with Simulator(units={1: HOLDING}) as running:
        yield running


@pytest.mark.parametrize("bad", (0, 17, 39))
async def test_a_unit_that_ignores_one_address_is_read_all_the_same(
    device: Simulator, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "RETRY_S", (0.0, 0.0))
    device.faults.ignored = {(None, bad)}
    wanted = registers(*range(40), 90)  # two requests
    async with linked(ModbusDriver(), config(device)) as link:
        for _ in range(12):
            results = await read(link, wanted)
        unread = results.pop(f"r{bad}")
        assert results == {f"r{a}": a for a in (*range(40), 90) if a != bad}
        assert isinstance(unread, DeviceTimeout)
        assert unread.problem == f"no reply to a read of HoldingRegister {bad}, while the device answers others"
        device.faults.clear()
        assert (await read(link, wanted))[f"r{bad}"] == bad


async def test_the_other_requests_are_read_in_the_meantime(device: Simulator) -> None:
    """The one that is ignored comes last, and the line is not lost over it."""
    device.faults.ignored = {("HoldingRegister", 5)}
    wanted = (*registers(5, 6), property_("input", "InputRegister", 0), *registers(90))
    async with linked(ModbusDriver(), config(device)) as link:
        await read(link, wanted)
        for _ in range(5):
            results = await read(link, wanted)
            assert (results["input"], results["r90"]) == (1, 90)
            assert isinstance(results["r5"], DeviceTimeout)


async def test_on_a_shared_line_a_unit_is_not_held_back_for_what_it_ignores(
    device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "RETRY_S", (0.05, 0.05))
    device.faults.ignored = {("HoldingRegister", 5)}
    driver, other = ModbusDriver(), DeviceId("plant/other")
    async with linked(driver, config(device)) as link, linked(driver, config(device), other) as neighbour:
        assert isinstance((await read(link, registers(5, 90)))["r90"], DeviceTimeout)  # who knows what it is
        await asyncio.sleep(0.06)
        for _ in range(10):
            assert (await read(link, registers(5, 90)))["r90"] == 90
            assert await read(neighbour, registers(1)) == {"r1": 1}


async def test_however_many_links_it_takes_some_other_property_is_tried(device: Simulator) -> None:
    """Alone on its line the device loses its link with the third miss, and the first ten properties are ignored."""
    device.faults.ignored = {(None, a) for a in range(10)}
    driver, wanted, results = ModbusDriver(), registers(*range(20)), {}
    for _ in range(10):
        with contextlib.suppress(DeviceUnreachable):
            async with linked(driver, config(device)) as link:
                for _ in range(3):
                    results = await read(link, wanted)
    assert results["r19"] == 19 or "while the device answers others" in results["r19"].problem


async def test_one_lost_reply_leaves_everything_as_it_was(device: Simulator) -> None:
    wanted = registers(*range(20))
    async with linked(ModbusDriver(), config(device)) as link:
        device.faults.silent_units = {1}
        assert all(isinstance(r, DeviceTimeout) for r in (await read(link, wanted)).values())
        device.faults.clear()
        assert await read(link, wanted) == {f"r{a}": a for a in range(20)}
        asked = sum(device.requests.values())
        assert await read(link, wanted) == {f"r{a}": a for a in range(20)}
        assert sum(device.requests.values()) == asked + 1


async def test_what_was_learned_outlives_the_link_and_not_the_config(device: Simulator) -> None:
    device.faults.exceptions = {("HoldingRegister", 10): 2}
    wanted, driver, where = registers(9, 10, 11, 12), ModbusDriver(), config(device)
    async with linked(driver, where) as link:
        assert isinstance((await read(link, wanted))["r10"], DeviceRejected)
    for again, requests in ((where, 3), (msgspec.structs.replace(where, timeout=160), 5)):
        async with linked(driver, again) as link:
            asked = sum(device.requests.values())
            results = await read(link, wanted)
            assert isinstance(results["r10"], DeviceRejected)
            assert sum(device.requests.values()) == asked + requests
    async with linked(driver, where, DeviceId("plant/other")) as link:  # another device is not judged by it
        asked = sum(device.requests.values())
        await read(link, wanted)
        assert sum(device.requests.values()) == asked + 5
    assert set(driver._learned) == {DEVICE, DeviceId("plant/other")}


async def test_a_failure_that_passes_teaches_nothing(device: Simulator) -> None:
    wanted = registers(0, 1, 3)
    async with linked(ModbusDriver(), config(device)) as link:
        for _ in range(3):
            device.faults.exceptions = {("HoldingRegister", None): 4}
            failing = await read(link, wanted)
            assert all(isinstance(r, DeviceRejected) and r.code == 4 for r in failing.values())
            device.faults.clear()
        assert not link._learned.cuts
        assert link._learned.most == 125


async def test_a_device_failure_is_asked_about_once_more_before_it_is_split(
    device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal, left = device.faults.refusal, [1]

    def once(*where: Any) -> int:
        left[0] -= 1
        return 4 if left[0] >= 0 else refusal(*where)

    monkeypatch.setattr(type(device.faults), "refusal", lambda _, *where: once(*where))
    async with linked(ModbusDriver(), config(device)) as link:
        assert await read(link, registers(0, 1, 3)) == {"r0": 0, "r1": 1, "r3": 3}
        assert sum(device.requests.values()) == 2
        assert not link._learned.holes


async def test_few_bits_at_once_say_nothing_about_registers(device: Simulator) -> None:
    coils = [property_(f"c{a}", "CoilRegister", a, "BOOLEAN") for a in range(40)]
    wanted = (*registers(*range(50)), *coils)
    device.faults.max_registers = 1  # 16 bits
    async with linked(ModbusDriver(), config(device, max_gap=0)) as link:
        assert set((await read(link, coils)).values()) == {True}
        device.faults.clear()
        assert link._learned.most == 125
        assert link._learned.most_bits == 20
        asked = sum(device.requests.values())
        assert not any(isinstance(r, DeviceProtocolError) for r in (await read(link, wanted)).values())
        assert sum(device.requests.values()) == asked + 3
