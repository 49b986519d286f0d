"""How many calls of a mapper are taken, and that those of the others and registrations do not wait behind them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from grpc import ChannelConnectivity
from hypothesis import given
from hypothesis import strategies as st

from dmi import DeviceId, Overloaded, PeerRefused, Reported, Twin, UnknownDevice
from dmi import server as server_module
from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub
from dmi.client import EdgeCoreClient
from dmi.metrics import Metrics
from dmi.ports import MapperInfo, Registration
from dmi.rpc import open_channel
from dmi.server import serve_edgecore
from edgecore.devicetwin import limits as limits_module
from edgecore.devicetwin import mappers as mappers_module
from edgecore.devicetwin.limits import AT_ONCE, Bucket, Limits
from edgecore.store.database import MAX_BACKLOG
from mappers.sdk.uplink import Uplink
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

A, B, STRAY = DeviceId("default/a-1"), DeviceId("default/b-1"), DeviceId("default/nobody-1")
MAPPER = MapperInfo("a", "modbus", "/run/a.sock")
TWINS = [Twin("p")]
CALLS = "kubetwin_edgecore_dmi_calls_total"


class Store:
    """Takes reports as long as the test lets it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.taken: list[DeviceId] = []
        self.inside = 0

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        return Registration((), ())

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        self.inside += 1
        self.taken.append(device)
        await self.open.wait()
        self.inside -= 1

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        raise UnknownDevice(device) if state != "bug" else RuntimeError(state)


class World:
    def __init__(self, rate: int = 2000, burst: int = 4000) -> None:
        self.store = Store()
        self.metrics = Metrics()
        self.backlog = 0
        self.runners = {A: "modbus/a", B: "modbus/b"}
        self.limits = Limits(
            self.store,
            rate=rate,
            burst=burst,
            runner=lambda device: self.runners.get(device, ""),
            registered=lambda: sorted(self.runners.values()),
            backlog=lambda: self.backlog,
            metrics=self.metrics,
        )

    def calls(self) -> dict[tuple[str, ...], float]:
        return dict(self.metrics.counter(CALLS, "").values)

    def gauge(self, name: str) -> dict[tuple[str, ...], float]:
        read: Callable[[], dict[tuple[str, ...], float]] = self.metrics.entries[name].source.read  # type: ignore[union-attr,assignment]
        return dict(read())


@given(st.integers(1, 100), st.integers(1, 100), st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=200))
def test_a_bucket_gives_the_burst_and_the_rate_and_no_more(rate: int, burst: int, waits: list[float]) -> None:
    bucket, now, taken = Bucket(rate, burst, 0.0), 0.0, 0
    for wait_s in waits:
        now += wait_s
        taken += bucket.take(now)
        assert taken <= burst + rate * now + 1e-6
    assert sum(bucket.take(now + burst / rate) for _ in range(burst)) >= burst - 1  # rounding
    assert Bucket(rate, burst, 0.0).take(0.0)


async def test_what_is_over_the_limit_is_refused_with_limit_and_mapper(caplog: pytest.LogCaptureFixture) -> None:
    world = World(rate=1, burst=3)
    world.store.open.set()
    for _ in range(3):
        await world.limits.accept_twins(A, TWINS)
    for _ in range(50):
        with pytest.raises(Overloaded) as limited:
            await world.limits.accept_twins(A, TWINS)
    text = str(limited.value)
    assert "too many calls of mapper modbus/a: it may make 1 a second and 3 at once" in text
    assert "reportRate" in text
    await world.limits.accept_twins(B, TWINS)  # what is left to the others is theirs
    await world.limits.register_mapper(MAPPER, with_data=True)
    assert world.store.taken == [A, A, A, B]
    assert len([r for r in caplog.records if "reports are refused" in r.getMessage()]) == 1
    calls = world.calls()
    assert calls["ReportDeviceStatus", "modbus/a", "limited"] == 50
    assert calls["ReportDeviceStatus", "modbus/a", "ok"] == 3
    assert calls["ReportDeviceStatus", "modbus/b", "ok"] == 1
    assert calls["MapperRegister", "modbus/a", "ok"] == 1


async def test_one_mappers_flood_stands_in_nobody_elses_way() -> None:
    world = World()
    flood = [asyncio.create_task(world.limits.accept_twins(A, TWINS)) for _ in range(500)]
    await asyncio.sleep(0)
    other = asyncio.create_task(world.limits.accept_twins(B, TWINS))
    await world.limits.register_mapper(MAPPER, with_data=True)  # at once, whatever waits
    await asyncio.sleep(0)
    assert world.store.taken == [A] * AT_ONCE + [B]
    assert world.gauge("kubetwin_edgecore_dmi_reports_in_flight") == {("modbus/a",): 500, ("modbus/b",): 1}
    for task in flood[:10] + flood[-10:]:
        task.cancel()  # callers that do not wait, among those inside and those waiting
    world.store.open.set()
    await asyncio.gather(*flood, other, return_exceptions=True)
    assert world.store.taken.count(A) == 490  # ten had begun, ten never will
    assert not any(world.gauge("kubetwin_edgecore_dmi_reports_in_flight").values())
    assert world.calls()["ReportDeviceStatus", "modbus/a", "cancelled"] == 20


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "WAITING", 100)
    world = World()
    flood = [asyncio.create_task(world.limits.accept_twins(A, TWINS)) for _ in range(500)]
    await asyncio.sleep(0)
    assert sum(not task.done() for task in flood) == AT_ONCE + 100
    world.store.open.set()
    results = await asyncio.gather(*flood, return_exceptions=True)
    refused = [r for r in results if isinstance(r, Overloaded)]
    assert len(refused) == 500 - AT_ONCE - 100
    assert str(refused[0]) == "too many calls at once: 100 of mapper modbus/a wait to be stored"


async def test_registrations_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world, go_on = World(), asyncio.Event()

    async def register(mapper: MapperInfo, *, with_data: bool) -> Registration:
        await go_on.wait()
        return Registration((), ())

    world.store.register_mapper = register  # type: ignore[method-assign]
    calls = [asyncio.create_task(world.limits.register_mapper(MAPPER, with_data=True)) for _ in range(40)]
    await asyncio.sleep(0)
    assert world.gauge("kubetwin_edgecore_dmi_registrations_in_flight") == {(): limits_module.REGISTRATIONS}
    go_on.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(r, Overloaded) for r in results) == 40 - limits_module.REGISTRATIONS
    await world.limits.register_mapper(MAPPER, with_data=True)


async def test_a_store_that_is_behind_takes_no_more() -> None:
    world = World()
    world.store.open.set()
    world.backlog = MAX_BACKLOG
    with pytest.raises(Overloaded, match=f"the store of this node is {MAX_BACKLOG} writes behind"):
        await world.limits.accept_twins(A, TWINS)
    await world.limits.register_mapper(MAPPER, with_data=True)
    world.backlog = 0
    await world.limits.accept_twins(A, TWINS)


async def test_outcomes_are_counted_by_call_and_mapper() -> None:
    world = World()
    with pytest.raises(UnknownDevice):
        await world.limits.accept_state(STRAY, "online", "")
    with pytest.raises(RuntimeError):
        await world.limits.accept_state(A, "bug", "")
    await world.limits.register_mapper(MapperInfo("unheard-of", "modbus", "/x"), with_data=True)
    world.limits.note("ReportDeviceStatus", "malformed")
    assert world.calls() == {
        ("ReportDeviceStates", "", "refused"): 1,
        ("ReportDeviceStates", "modbus/a", "failed"): 1,
        ("MapperRegister", "", "ok"): 1,  # no name of a caller's choice before it is registered
        ("ReportDeviceStatus", "", "malformed"): 1,
    }


async def test_shares_of_mappers_that_are_gone_do_not_stay() -> None:
    world = World()
    world.store.open.set()
    for number in range(100):
        world.runners = {A: f"modbus/a-{number}"}
        await world.limits.accept_twins(A, TWINS)
    assert len(world.gauge("kubetwin_edgecore_dmi_reports_in_flight")) <= 2


async def test_over_the_socket_a_limit_has_its_own_status_and_bad_calls_are_counted(tmp_path: Path) -> None:
    world = World(rate=1, burst=1)
    world.store.open.set()
    path, limits = tmp_path / "dmi.sock", world.limits
    async with serve_edgecore(limits, path, turned_away=limits.note), EdgeCoreClient(path) as client:
        await client.report_twins(A, TWINS)
        with pytest.raises(PeerRefused, match="too many calls of mapper modbus/a") as limited:
            await client.report_twins(A, TWINS)
        assert limited.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(PeerRefused, match=r"INVALID_ARGUMENT.*is empty"):
            await client.report_twins(A, [])
        for bad in (
            MapperInfo("x" * 300, "modbus", "/x"),
            MapperInfo("x", "modbus", "/" + "x" * 200),
            MapperInfo("x", "", "/x"),
        ):
            with pytest.raises(PeerRefused, match=r"mapper\.name: is longer|mapper\.address: a path of|must both be"):
                await client.register(bad)
    calls = world.calls()
    assert calls["ReportDeviceStatus", "", "malformed"] == 1
    assert calls["MapperRegister", "", "malformed"] == 3
    assert calls["ReportDeviceStatus", "modbus/a", "limited"] == 1


async def test_a_mapper_of_ours_that_is_limited_loses_nothing(tmp_path: Path) -> None:
    """Ten times over its limit: in the end every device's newest value is there, and it did not fall to a crawl."""
    world = World(rate=200, burst=20)
    world.store.open.set()
    newest: dict[DeviceId, str] = {}

    async def accept_twins(device: DeviceId, twins: Sequence[Twin]) -> None:
        newest[device] = twins[-1].reported.value

    world.store.accept_twins = accept_twins  # type: ignore[method-assign]
    devices = [DeviceId(f"default/a-{n}") for n in range(100)]
    world.runners = dict.fromkeys(devices, "modbus/a")
    path = tmp_path / "dmi.sock"
    async with serve_edgecore(world.limits, path), EdgeCoreClient(path) as client:
        uplink = Uplink(client)
        uplink.open()
        sending = asyncio.create_task(uplink.run())
        for value in range(20):
            for device in devices:
                twin = Twin("p")
                uplink.put_twins(
                    device,
                    [msgspec.structs.replace(twin, reported=msgspec.structs.replace(twin.reported, value=str(value)))],
                )
            await asyncio.sleep(0.05)
        async with asyncio.timeout(20):  # at a call a second it would take more than a minute
            await uplink.drained()
        sending.cancel()
        await asyncio.wait([sending])
    assert newest == dict.fromkeys(devices, "19")
    assert world.calls()["ReportDeviceStatus", "modbus/a", "limited"] > 0


async def test_the_limit_of_the_configuration_counts(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> None:
    """In a whole edge core: keyed by the mapper that runs the device."""
    await edge.stop()
    twin = msgspec.structs.replace(edge.config.modules.device_twin, report_rate=1, report_burst=5)
    edge.config = msgspec.structs.replace(
        edge.config, modules=msgspec.structs.replace(edge.config.modules, device_twin=twin)
    )
    await edge.start()
    await cloud.put(model_object())
    await cloud.put(device_object())
    await cloud.put(model_object("valve", "opcua", {"level": "INT"}))
    await cloud.put(device_object("valve-1", model="valve", protocol="opcua", properties=["level"]))
    other = FakeMapper(tmp_path, name="other", protocol="opcua")
    async with mapper.running(), other.running():
        refusals = await until_limited(mapper, "default/boiler-1")
        assert "too many calls of mapper modbus/mapper-1: it may make 1 a second and 5 at once" in refusals[-1]
        await other.report("default/valve-1", level="1")
        await mapper.register()
        refusals = await until_limited(mapper, "default/stray")
        assert {text.split(":")[0] for text in refusals} == {"NOT_FOUND", "RESOURCE_EXHAUSTED"}
        assert "too many calls of devices that no mapper here runs" in refusals[-1]


async def until_limited(mapper: FakeMapper, device: str) -> list[str]:
    refusals: list[str] = []
    for _ in range(20):
        try:
            await mapper.report(device, temperature="1")
        except PeerRefused as refused:
            refusals.append(str(refused))
            if refused.code == "RESOURCE_EXHAUSTED":
                return refusals
    raise AssertionError(f"never limited: {refusals}")


async def test_mappers_are_bounded(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappers_module, "MAX_MAPPERS", 2)
    async with mapper.running():
        await mapper.client.register(MapperInfo("two", "modbus", "/run/two.sock"))
        with pytest.raises(PeerRefused, match="too many mappers: 2 are registered"):
            await mapper.client.register(MapperInfo("three", "modbus", "/run/three.sock"))
        await mapper.register()  # a known one always


async def test_large_reports_are_bounded_by_their_bytes_and_small_ones_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LARGE_AT_ONCE_BYTES", 300_000)
    world = World()
    path, limits = tmp_path / "dmi.sock", world.limits
    large = [Twin("p", reported=Reported(value="x" * 100_000))]
    async with serve_edgecore(limits, path, turned_away=limits.note), EdgeCoreClient(path) as client:
        waiting = [asyncio.create_task(client.report_twins(A, large)) for _ in range(2)]
        async with asyncio.timeout(10):
            while world.store.inside < 2:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        with pytest.raises(PeerRefused, match=r"RESOURCE_EXHAUSTED.*no room for 100\d\d\d bytes"):
            await client.report_twins(A, large)
        small = asyncio.create_task(client.report_twins(A, TWINS))
        world.store.open.set()
        await asyncio.gather(*waiting, small)
        await client.report_twins(A, large)
    assert world.calls()["ReportDeviceStatus", "", "limited"] == 1


async def test_one_connection_has_its_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is more waits at the caller or is refused, and is not in our memory."""
    monkeypatch.setattr(server_module, "STREAMS", 100)
    world = World()
    world.runners = {DeviceId(f"default/a-{n}"): f"modbus/{n}" for n in range(400)}  # no share is full
    path = tmp_path / "dmi.sock"
    async with serve_edgecore(world.limits, path), open_channel(path) as channel:
        while (state := channel.get_state(try_to_connect=True)) is not ChannelConnectivity.READY:
            await channel.wait_for_state_change(state)  # it knows the bound from here on
        stub = DeviceManagerServiceStub(channel)
        twins = pb.DeviceStatus(twins=[pb.Twin(propertyName="p", reported=pb.TwinProperty(value="1"))])
        calls = [
            stub.ReportDeviceStatus(
                pb.ReportDeviceStatusRequest(deviceNamespace="default", deviceName=f"a-{n}", reportedDevice=twins),
                timeout=30,
            )
            for n in range(400)
        ]
        async with asyncio.timeout(10):
            while world.store.inside < 100:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert world.store.inside == 100
        world.store.open.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == len(world.store.taken)
