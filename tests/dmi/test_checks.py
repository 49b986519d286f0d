"""A device against its model."""

import pytest

from dmi import Device, DeviceModel, DeviceProperty, ModelProperty, Visitor, check_device, merge_model
from dmi.types import DesiredSpec

MODEL = DeviceModel(
    namespace="plant",
    name="pump",
    protocol="modbus",
    protocol_config={"port": 502, "slaveID": 1},
    properties=(
        ModelProperty(name="pressure", type="FLOAT", access_mode="ReadOnly"),
        ModelProperty(
            name="setpoint", type="INT", minimum="0", maximum="100",
            visitor=Visitor("modbus", {"register": "Holding", "offset": 1})
        ),
    ),
)  # fmt: skip


def device(*properties: DeviceProperty) -> Device:
    return Device(namespace="plant", name="pump-1", model="pump", protocol="modbus", properties=properties)


def test_instance_settings_lie_over_the_models() -> None:
    merged = merge_model(
        Device(
            namespace="plant", name="pump-1", protocol_config={"slaveID": 7, "ip": "192.0.2.1"},
            properties=(DeviceProperty(name="setpoint", visitor=Visitor("lost", {"offset": 4})),),
        ),
        MODEL,
    )  # fmt: skip
    assert merged.protocol_config == {"port": 502, "slaveID": 7, "ip": "192.0.2.1"}
    assert merged.properties[0].visitor == Visitor("modbus", {"register": "Holding", "offset": 4})


def test_a_property_the_model_does_not_know_is_left_out_and_named() -> None:
    typo = device(DeviceProperty(name="presure"), DeviceProperty(name="pressure"))
    assert [p.name for p in merge_model(typo, MODEL).properties] == ["pressure"]
    (problem,) = check_device(typo, MODEL)
    assert problem.reason == "UnknownProperty"
    assert problem.message.startswith("spec.properties[0].name: model 'pump' has no property 'presure'")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    (
        ("pressure", "3", "ReadOnlyProperty"),
        ("setpoint", "101", "InvalidDesired"),
        ("setpoint", "warm", "InvalidDesired"),
        ("setpoint", "1.5", "InvalidDesired"),
    ),
)
def test_a_desired_value_that_can_never_be_written_is_a_problem(name: str, value: str, reason: str) -> None:
    (problem,) = check_device(device(DeviceProperty(name=name, desired=DesiredSpec(value))), MODEL)
    assert (problem.reason, problem.property_name) == (reason, name)
    assert problem.message.startswith("spec.properties[0].desired.value: ")


def test_a_sound_device_has_no_problems() -> None:
    assert (
        check_device(
            device(DeviceProperty(name="setpoint", desired=DesiredSpec("100")), DeviceProperty(name="pressure")), MODEL
        )
        == []
    )
