"""What is wrong is named and dropped; everything else goes on."""

import asyncio
import logging
import sqlite3
from pathlib import Path

import grpc
import grpc.aio
import pytest
from picows import WSMsgType

from cloudedge import new_message
from dmi import Desired, DeviceId, PeerRefused, Reported, Twin
from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub
from edgecore.devicetwin.intake import MAX_VALUE_BYTES
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

BOILER = DeviceId("default/boiler-1")


async def test_an_unknown_device_is_refused_by_name(boiler: FakeMapper) -> None:
    with pytest.raises(PeerRefused, match="default/nobody is not on node edge-1") as caught:
        await boiler.report("default/nobody", temperature="1")
    assert caught.value.code == "NOT_FOUND"


async def test_an_unknown_property_harms_no_other(
    boiler: FakeMapper, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    for value in ("1", "2"):
        await boiler.report(BOILER, nonsense=value, temperature=value)
    await cloud.until_value(BOILER, "temperature", "2")
    assert (BOILER, "nonsense") not in cloud.twins
    assert sum("no property 'nonsense'" in r.message for r in caplog.records) == 1
    with pytest.raises(PeerRefused, match="no property 'nonsense'"):
        await boiler.report(BOILER, nonsense="3")


async def test_a_value_that_is_too_large_is_refused(boiler: FakeMapper) -> None:
    with pytest.raises(PeerRefused, match=r"temperature.*over"):
        await boiler.report(BOILER, temperature="x" * (MAX_VALUE_BYTES + 1))


async def test_any_text_is_a_value(boiler: FakeMapper, cloud: FakeCloud) -> None:
    text = '{"a": "ü +=% \\" 温度"}\u0000\n'
    await boiler.report(BOILER, temperature=text)
    await cloud.until_value(BOILER, "temperature", text)


async def test_other_states_are_refused(boiler: FakeMapper) -> None:
    with pytest.raises(PeerRefused, match="'dead' is not one of") as caught:
        await boiler.client.report_state(BOILER, "dead")  # type: ignore[arg-type]  # what a foreign mapper may send
    assert caught.value.code == "INVALID_ARGUMENT"


async def test_a_mapper_without_an_address_is_refused(edge: Edge, tmp_path: Path) -> None:
    mapper = FakeMapper(tmp_path)
    async with mapper.client:
        for info in (pb.MapperInfo(name="m", protocol="p"), pb.MapperInfo(name="m"), None):
            async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'dmi.sock'}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await DeviceManagerServiceStub(channel).MapperRegister(pb.MapperRegisterRequest(mapper=info))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_that_are_no_messages_are_refused(boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'dmi.sock'}") as channel:
        for method in ("MapperRegister", "ReportDeviceStatus", "ReportDeviceStates"):
            call = channel.unary_unary(f"/v1beta1.DeviceManagerService/{method}")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"\xff\xff\xff\xff rubbish")
    await boiler.report(BOILER, temperature="1")
    await cloud.until_value(BOILER, "temperature", "1")


async def test_a_go_mapper_without_times_and_types(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await boiler.client.report_twins(BOILER, [Twin("setpoint", Reported(value="3"), Desired(value="3"))])
    twin = await cloud.until_value(BOILER, "setpoint", "3")
    assert twin["metadata"] == {"type": "int"}
    assert twin["actual"]["metadata"]["timestamp"] > 1_700_000_000_000
    assert twin["expected"]["value"] == "3"


async def test_a_mapper_that_wants_no_data_is_called_all_the_same(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running(register=False):
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'dmi.sock'}") as channel:
            info = pb.MapperInfo(name="m", protocol="modbus", address=mapper.info.address.encode())
            answer = await DeviceManagerServiceStub(channel).MapperRegister(pb.MapperRegisterRequest(mapper=info))
        assert not answer.deviceList
        await mapper.until_device("boiler-1")
        assert mapper.calls == [("model", "default/boiler"), ("device", BOILER)]


async def test_frames_and_messages_that_make_no_sense_are_dropped(
    boiler: FakeMapper, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cloudedge")  # the first is a warning, the others are not
    assert cloud.connection is not None
    transport = cloud.connection._transport
    assert transport is not None
    for frame in (b"", b"\xff\xfe", b"[]", b"{}", b'{"header":{"msg_id":5}}', b'{"header":{}}', b"[" * 5000):
        transport.send(WSMsgType.TEXT, frame)
    for group, resource, content in (
        ("resource", "../../device/x", {}),
        ("resource", "default/device/x", "no object"),
        ("twin", "membership/detail", {"devices": "none"}),
        ("user", "x", None),
        ("", "", None),
    ):
        await cloud.send(new_message(source="x", group=group, operation="insert", resource=resource, content=content))
    await cloud.put(device_object("boiler-2"))
    await boiler.until_device("boiler-2")
    assert cloud.connected == 1
    assert sum("dropped" in r.message for r in caplog.records) >= 9


async def test_a_device_that_is_no_device_is_stored_and_shown(edge: Edge, cloud: FakeCloud, mapper: FakeMapper) -> None:
    broken = device_object("odd")
    broken["spec"] = {"properties": 7}
    await cloud.put(model_object())
    await cloud.put(broken)
    state = await cloud.until_state("default/odd", "unhealthy")
    assert state["reason"] == "spec.properties: must be a list, not the number 7"
    async with mapper.running():
        await cloud.put(device_object())
        await mapper.until_device("boiler-1")


async def test_a_declaration_that_trips_a_codec_keeps_nothing_from_starting(
    edge: Edge, boiler: FakeMapper, cloud: FakeCloud
) -> None:
    odd = device_object("odd")
    odd["spec"]["properties"][0]["pushMethod"] = {"anomalyDetection": 5}
    await cloud.put(odd)
    await cloud.until_state("default/odd", "unhealthy")
    await edge.stop()
    await edge.start()
    await cloud.put(device_object("boiler-2"))
    await boiler.until_device("boiler-2")


async def test_a_store_that_takes_nothing_is_an_error_to_the_mapper(
    edge: Edge, boiler: FakeMapper, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr("edgecore.devicetwin.intake.put_twins", full)
        with pytest.raises(PeerRefused, match="not stored: database or disk is full"):
            await boiler.report(BOILER, temperature="1")
    await boiler.report(BOILER, temperature="2")
    await cloud.until_value(BOILER, "temperature", "2")


async def test_edge_core_stops_quickly_with_everything_connected(edge: Edge, boiler: FakeMapper) -> None:
    async with asyncio.timeout(3):
        await edge.stop()
