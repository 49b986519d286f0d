from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, PropertyType, Scalar, Visitor
from mappers.drivers.modbus import ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.settings import resolve_visitor
from mappers.sdk import ConfigError
from mappers.sdk.declaration import declare
from mappers.sdk.settings import decode_settings

KEYS = ["register", "offset", "limit", "scale", "isSwap", "isRegisterSwap", "dataType", "max", "Offset", "REGISTER"]
SCALARS = st.one_of(
    st.sampled_from(
        ["HoldingRegister", "CoilRegister", "int", "float", "string", "5", "0.1", "true", "", "NaN", "1e999"]
    ),
    st.text(max_size=8),
    st.booleans(),
    st.integers(),
    st.floats(),
)
TYPES = st.sampled_from(["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES"])


def parse(config: dict[str, Scalar], type_: PropertyType = "INT") -> ModbusVisitor:
    visitor, _ = decode_settings(config, ModbusVisitor)
    return resolve_visitor(visitor, ModelProperty("p", type_))


@given(st.dictionaries(st.sampled_from(KEYS), SCALARS), TYPES)
def test_settings_parse_or_raise_config_error(config: dict[str, Scalar], type_: PropertyType) -> None:
    try:
        visitor = parse(config, type_)
    except ConfigError:
        return
    assert visitor.limit >= 1
    assert visitor.end <= 65536
    assert visitor.scale.is_finite()
    assert visitor.scale != 0


def test_manifests_as_they_are_in_the_wild() -> None:
    visitor = parse({"Register": "holdingregister", "Offset": "2", "limit": 1.0, "scale": "0.1", "isSwap": "true"})
    assert visitor == ModbusVisitor("HoldingRegister", 2, 1, Decimal("0.1"), is_swap=True, data_type="int")
    assert parse({"register": "InputRegister", "offset": 0, "scale": 0}).scale == 1
    assert parse({"register": "CoilRegister", "offset": 3, "dataType": "bool"}, "BOOLEAN").data_type == "boolean"


@pytest.mark.parametrize(
    ("type_", "config", "data_type", "limit"),
    (
        ("INT", {}, "int", 1),
        ("INT", {"limit": 4}, "int", 4),
        ("FLOAT", {}, "float", 2),
        ("FLOAT", {"limit": 1}, "int", 1),
        ("DOUBLE", {}, "double", 4),
        ("DOUBLE", {"limit": 2}, "float", 2),
        ("BOOLEAN", {}, "boolean", 1),
        ("STRING", {"limit": 8}, "string", 8),
        ("BYTES", {"limit": 3}, "bytes", 3),
    ),
)
def test_what_is_left_out_follows_from_the_model(
    type_: PropertyType, config: dict[str, Scalar], data_type: str, limit: int
) -> None:
    visitor = parse({"register": "HoldingRegister", "offset": 0, **config}, type_)
    assert (visitor.data_type, visitor.limit) == (data_type, limit)


@pytest.mark.parametrize(
    ("type_", "config", "path", "says"),
    (
        ("INT", {"register": "Foo"}, "register", "'Foo' is not one of CoilRegister, Disc"),
        ("INT", {"offset": 70000}, "offset", "70000"),
        ("INT", {"offset": "x"}, "offset", "'x'"),
        ("INT", {"offset": 65535, "limit": 2}, "offset", "past the last address"),
        ("INT", {"limit": 3}, "limit", "1 or 2 or 4"),
        ("FLOAT", {"register": "CoilRegister", "dataType": "float"}, "dataType", "bits hold boolean or int"),
        ("FLOAT", {"dataType": "float", "limit": 1}, "limit", "dataType int"),
        ("STRING", {}, "limit", "is missing"),
        ("STRING", {"limit": 126}, "limit", "up to 125"),
        ("INT", {"scale": "NaN"}, "scale", "finite"),
        ("STRING", {"limit": 4, "scale": 2}, "scale", "has none"),
    ),
)
def test_what_cannot_work_names_its_key(type_: PropertyType, config: dict[str, Scalar], path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse({"register": "HoldingRegister", "offset": 0, **config}, type_)
    assert caught.value.path == path


def declared(protocol: dict[str, Scalar], *visitors: dict[str, Scalar]) -> Any:
    model = DeviceModel("ns", "m", tuple(ModelProperty(f"p{i}", "INT") for i in range(len(visitors))))
    properties = tuple(DeviceProperty(f"p{i}", visitor=Visitor(config=v)) for i, v in enumerate(visitors))
    device = Device("ns", "d", model="m", protocol="modbus", protocol_config=protocol, properties=properties)
    return declare(ModbusDriver(), device, model)


def test_a_bad_property_is_named_with_its_path_and_leaves_the_others() -> None:
    good: dict[str, Scalar] = {"register": "HoldingRegister", "offset": 0}
    result = declared({"ip": "127.0.0.1"}, good, {"register": "Foo", "offset": 0}, {**good, "offset": -1})
    assert set(result.properties) == {"p0"}
    assert result.problem == ""
    assert result.reason().startswith("property p1: visitors.configData.register: 'Foo' is not one of")
    assert [e.split(":")[0] for e in result.errors()] == [
        "spec.properties[1].visitors.configData.register",
        "spec.properties[2].visitors.configData.offset",
    ]


@pytest.mark.parametrize(
    ("config", "says"),
    (
        ({}, "spec.protocol.configData.ip: is missing"),
        ({"ip": "h", "communicateMode": "RTU"}, "spec.protocol.configData.communicateMode: 'RTU' is not supported"),
        ({"ip": "h", "port": 0}, "spec.protocol.configData.port: 0"),
        ({"ip": "h", "slaveID": 300}, "spec.protocol.configData.slaveID: 300"),
        ({"ip": "h", "timeout": 5}, "spec.protocol.configData.timeout: 5"),
    ),
)
def test_a_bad_protocol_config_breaks_the_device_and_says_where(config: dict[str, Scalar], says: str) -> None:
    result = declared(config, {"register": "HoldingRegister", "offset": 0})
    assert result.config is None
    assert result.problem.startswith(says)
    assert result.problems == {"p0": result.problem}


def test_unknown_keys_are_warned_about_and_port_may_be_a_text() -> None:
    result = declared({"ip": "h", "port": "1502", "baud": 9600}, {"register": "HoldingRegister", "offset": 0, "max": 9})
    assert result.config.port == 1502
    assert result.errors() == []
    assert result.warnings == (
        "spec.protocol.configData.baud: is not used by modbus",
        "spec.properties[0].visitors.configData.max: is not used by modbus",
    )


def test_what_did_not_change_stays_the_same_object() -> None:
    visitors: list[dict[str, Scalar]] = [{"register": "HoldingRegister", "offset": i} for i in range(2)]
    first = declared({"ip": "h"}, *visitors)
    visitors[1]["offset"] = 9
    model = DeviceModel("ns", "m", tuple(ModelProperty(f"p{i}", "INT") for i in range(2)))
    properties = tuple(DeviceProperty(f"p{i}", visitor=Visitor(config=v)) for i, v in enumerate(visitors))
    device = Device("ns", "d", model="m", protocol_config={"ip": "h"}, properties=properties)
    second = declare(ModbusDriver(), device, model, first)
    assert second.properties["p0"] is first.properties["p0"]
    assert second.properties["p1"] is not first.properties["p1"]
