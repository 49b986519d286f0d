"""Kubernetes object ⇄ value ⇄ protobuf message, and what real upstream programs sent."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from google.protobuf import wrappers_pb2
from hypothesis import given

from dmi import (
    ConfigError,
    Device,
    DeviceModel,
    device_from_crd,
    device_to_crd,
    merge_model,
    model_from_crd,
    model_to_crd,
)
from dmi._pb import api_pb2 as pb
from dmi.wire import device_from_pb, device_to_pb, model_from_pb, model_to_pb, twin_from_pb, twin_to_pb

from .strategies import devices, models

CAPTURES = Path(__file__).parent.parent / "data" / "captures"


def recorded(direction: str) -> list[tuple[str, Any]]:
    """Messages that upstream's edge core and a Go mapper exchanged, parsed."""
    lines = (json.loads(line) for line in (CAPTURES / "upstream-dmi.jsonl").read_text().splitlines())
    return [
        (line["method"], getattr(pb, line["type"]).FromString(bytes.fromhex(line["hex"])))
        for line in lines
        if line["dir"] == direction
    ]


def manifests() -> tuple[DeviceModel, Device]:
    """The model and device of that recording, as its README has them."""
    text = (CAPTURES / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    model, device = yaml.safe_load_all(text)
    return model_from_crd(model), device_from_crd(device)


@given(devices)
def test_device_survives_kubernetes(device: Device) -> None:
    assert device_from_crd(json.loads(json.dumps(device_to_crd(device)))) == device


@given(models)
def test_model_survives_kubernetes(model: DeviceModel) -> None:
    assert model_from_crd(json.loads(json.dumps(model_to_crd(model)))) == model


@given(devices)
def test_device_survives_dmi_but_for_its_node(device: Device) -> None:
    message = pb.Device.FromString(device_to_pb(device).SerializeToString())
    assert device_from_pb(message) == msgspec.structs.replace(device, node="")


@given(models)
def test_model_survives_dmi_but_for_its_defaults(model: DeviceModel) -> None:
    bare = msgspec.structs.replace(
        model,
        protocol="",
        protocol_config={},
        properties=tuple(msgspec.structs.replace(p, visitor=None) for p in model.properties),
    )
    assert model_from_pb(pb.DeviceModel.FromString(model_to_pb(model).SerializeToString())) == bare


@given(devices)
def test_a_go_mapper_finds_every_message_it_dereferences(device: Device) -> None:
    message = device_to_pb(device)
    assert message.HasField("spec")
    assert message.spec.HasField("protocol")
    for property_ in message.spec.properties:
        assert property_.HasField("desired")
        assert property_.HasField("visitors")
        assert property_.visitors.HasField("configData")
        for value in property_.visitors.configData.data.values():
            assert value.type_url.removeprefix("type.googleapis.com/google.protobuf.") in (
                "StringValue", "BoolValue", "FloatValue", "Int32Value", "Int64Value",
            )  # fmt: skip


def test_what_upstreams_edge_core_sent_is_the_device_that_was_declared() -> None:
    model, device = manifests()
    (answer,) = (message for method, message in recorded("edgecore->mapper") if method == "MapperRegister")
    merged = merge_model(device, model)
    read = device_from_pb(answer.deviceList[0])
    order = [p.name for p in read.properties]
    declared = sorted(merged.properties, key=lambda p: order.index(p.name))
    # `big: 16777217` does not survive upstream's 32-bit numbers; everything else does, 0.1 and 0.25 included.
    assert read.protocol_config == {**merged.protocol_config, "big": 16777216}
    assert [p.visitor for p in read.properties] == [p.visitor for p in declared]
    assert [p.desired for p in read.properties] == [p.desired for p in declared]
    assert [p.push_method for p in read.properties] == [
        json.loads(json.dumps(p.push_method)) if p.push_method else None for p in declared
    ]
    assert (read.model, read.report_state, read.state_report_cycle_ms) == ("pump-model", True, 5000)
    assert model_from_pb(answer.modelList[0]).find("setpoint") == model.find("setpoint")


def test_our_device_message_is_upstreams_but_for_exact_integers() -> None:
    """Every field equals the recorded one once upstream's 32-bit floats are read as the integers they stand for."""
    model, device = manifests()
    (answer,) = (message for method, message in recorded("edgecore->mapper") if method == "MapperRegister")
    theirs, ours = answer.deviceList[0], device_to_pb(merge_model(device, model))

    def flattened(message: pb.Device) -> dict[str, Any]:
        copy = pb.Device.FromString(message.SerializeToString())
        configs = [copy.spec.protocol.configData, *(p.visitors.configData for p in copy.spec.properties)]
        for config in configs:
            for value in config.data.values():
                if value.type_url.endswith("Int64Value"):
                    number = wrappers_pb2.Int64Value.FromString(value.value).value
                    value.Pack(wrappers_pb2.FloatValue(value=number))
        ordered = sorted(copy.spec.properties, key=lambda p: p.name)
        del copy.spec.properties[:]
        copy.spec.properties.extend(ordered)
        return {"text": str(copy)}

    assert flattened(ours) == flattened(theirs)


def test_every_recorded_mapper_report_is_read() -> None:
    reports = [message for method, message in recorded("mapper->edgecore") if method == "ReportDeviceStatus"]
    twins = [twin_from_pb(t) for report in reports for t in report.reportedDevice.twins]
    assert {t.property_name for t in twins} == {"pressure", "setpoint", "running", "label"} & {
        t.property_name for t in twins
    }
    assert twins
    for twin in twins:
        assert twin.reported.quality == "good"
        assert twin.reported.collected_ms == 0  # Go mappers send an empty timestamp
        message = twin_to_pb(twin)
        assert message.HasField("observedDesired")
        assert message.HasField("reported")


@pytest.mark.parametrize(
    ("change", "says"),
    (
        (
            {"properties": [{"name": "a", "collectCycle": "fast"}]},
            r"spec\.properties\[0\]\.collectCycle: must be a whole",
        ),
        (
            {"properties": [{"name": "a", "collectCycle": -1}]},
            r"spec\.properties\[0\]\.collectCycle: -1 is not a cycle",
        ),
        ({"properties": [{}]}, r"spec\.properties\[0\]\.name: is missing"),
        ({"properties": {"a": 1}}, r"spec\.properties: must be a list, not an object"),
        (
            {"protocol": {"protocolName": "modbus", "configData": {"tcp": {"ip": "192.0.2.1"}}}},
            r"spec\.protocol\.configData\.tcp: settings are flat",
        ),
        ({"properties": [{"name": "a", "desired": {"value": 5}}]}, r"spec\.properties\[0\]\.desired\.value: .* quotes"),
    ),
)
def test_a_declaration_that_cannot_work_is_refused_with_its_path(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        device_from_crd({"metadata": {"name": "d", "namespace": "n"}, "spec": change})


def test_an_unknown_property_type_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"spec\.properties\[0\]\.type: 'INTEGER' is not one of INT, FLOAT"):
        model_from_crd(
            {"metadata": {"name": "m", "namespace": "n"}, "spec": {"properties": [{"name": "a", "type": "INTEGER"}]}}
        )
