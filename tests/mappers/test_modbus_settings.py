from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, PropertyType, Scalar, Visitor
from mappers.drivers.modbus import ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.sdk import ConfigError
from mappers.sdk.declaration import declare
from mappers.sdk.settings import decode_settings

KEYS = ["register", "offset", "limit", "scale", "isSwap", "isRegisterSwap", "dataType", "max", "Offset", "REGISTER",
        "bias", "byteOrder", "bit", "bitCount", "writeFunction"]  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(
        [
            "HoldingRegister",
            "CoilRegister",
            "int",
            "float",
            "string",
            "5",
            "0.1",
            "true",
            "",
            "NaN",
            "1e999",
            "CDAB",
            "AB",
            "int16",
            "bcd",
            "mask",
            "single",
        ]
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
        ("FLOAT", {"limit": 1, "dataType": "float", "scale": 0.1}, "int", 1),  # upstream's temperature sensor
        ("DOUBLE", {"limit": "1", "dataType": "Double"}, "int", 1),
        ("DOUBLE", {}, "double", 4),
        ("DOUBLE", {"limit": 2}, "float", 2),
        ("BOOLEAN", {}, "boolean", 1),
        ("STRING", {"limit": 8}, "string", 8),
        ("BYTES", {"limit": 3}, "bytes", 3),
        ("INT", {"dataType": "uint32"}, "int", 2),
        ("INT", {"dataType": "INT64"}, "int64", 4),
        ("FLOAT", {"dataType": "float64"}, "double", 4),
        ("INT", {"dataType": "bcd"}, "bcd", 1),
        ("INT", {"byteOrder": "cdab"}, "int", 2),
        ("DOUBLE", {"byteOrder": "GHEFCDAB"}, "double", 4),
        ("BOOLEAN", {"bit": 3}, "boolean", 1),
        ("FLOAT", {"bit": 3, "bitCount": 4}, "int", 1),
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
        ("FLOAT", {"dataType": "float32", "limit": 1}, "limit", "float32 takes 2 registers"),
        ("FLOAT", {"dataType": "float", "limit": 4}, "limit", "float takes 2 registers"),
        ("STRING", {}, "limit", "is missing"),
        ("STRING", {"limit": 126}, "limit", "up to 125"),
        ("INT", {"scale": "NaN"}, "scale", "finite"),
        ("STRING", {"limit": 4, "scale": 2}, "scale", "has none"),
        ("STRING", {"limit": 4, "bias": 2}, "bias", "has none"),
        ("INT", {"bias": "Infinity"}, "bias", "finite"),
        ("INT", {"scale": "1e999999"}, "scale", "out of reach"),
        ("INT", {"scale": "1e-999999"}, "scale", "out of reach"),
        ("INT", {"scale": "1." + "3" * 60}, "scale", "out of reach"),
        ("INT", {"dataType": "int32", "limit": 1}, "limit", "int32 takes 2 registers"),
        ("INT", {"dataType": "uint64", "limit": 2}, "limit", "uint64 takes 4 registers"),
        ("INT", {"dataType": "bcd", "limit": 3}, "limit", "bcd takes 1 or 2 or 4 registers"),
        ("INT", {"dataType": "int8"}, "dataType", "'int8' is not one of int, int16"),
        ("INT", {"register": "CoilRegister", "dataType": "int16"}, "dataType", "bits hold boolean or int"),
        ("BOOLEAN", {"register": "CoilRegister", "limit": 2}, "limit", "boolean takes up to 1"),
        ("BOOLEAN", {"register": "CoilRegister", "bit": 1}, "bit", "a bit already"),
        ("INT", {"register": "CoilRegister", "byteOrder": "AB"}, "byteOrder", "no bytes"),
        ("INT", {"byteOrder": "CDAB", "isSwap": True, "limit": 2}, "isSwap", "keep one"),
        ("INT", {"byteOrder": "CDAB", "isRegisterSwap": True, "limit": 2}, "isRegisterSwap", "keep one"),
        ("INT", {"byteOrder": "CDAB", "limit": 1}, "byteOrder", "orders 4 bytes, the property has 2"),
        ("DOUBLE", {"byteOrder": "CDAB"}, "byteOrder", "orders 4 bytes, the property has 8"),
        ("INT", {"byteOrder": "ABDC"}, "byteOrder", "'ABDC' is not one of AB, BA, ABCD"),
        ("STRING", {"byteOrder": "BA", "limit": 1}, "byteOrder", "is for numbers"),
        ("INT", {"bit": 16}, "bit", "16"),
        ("INT", {"bit": 9, "bitCount": 8}, "bitCount", "go past bit 15"),
        ("INT", {"bitCount": 8}, "bit", "is missing"),
        ("BOOLEAN", {"bit": 1, "bitCount": 2}, "bitCount", "no boolean"),
        ("INT", {"bit": 1, "limit": 2}, "dataType", "an int of one register"),
        ("FLOAT", {"bit": 1, "dataType": "float"}, "dataType", "an int of one register"),
        ("INT", {"writeFunction": "mask"}, "writeFunction", "say which with the key bit"),
        ("INT", {"writeFunction": "mask", "register": "CoilRegister"}, "writeFunction", "HoldingRegister"),
        ("INT", {"writeFunction": "single", "limit": 2}, "writeFunction", "the property has 2"),
        ("INT", {"writeFunction": "readWrite", "register": "CoilRegister"}, "writeFunction", "HoldingRegisters"),
        ("INT", {"writeFunction": "readWrite", "bit": 1}, "writeFunction", "whole HoldingRegisters"),
        ("STRING", {"writeFunction": "readWrite", "limit": 122}, "writeFunction", "up to 121"),
        ("INT", {"writeFunction": "single", "register": "InputRegister"}, "writeFunction", "cannot be written"),
        ("INT", {"writeFunction": "twice"}, "writeFunction", "'twice' is not one of auto, single"),
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
        ({}, "ip: is missing"),
        ({"ip": "h", "communicateMode": "foo"}, "communicateMode: 'foo' is not one of TCP, TLS, UDP, RTU"),
        ({"ip": "h", "serialName": "/dev/x"}, "communicateMode: is missing: with both ip and serialName"),
        ({"ip": "h", "communicateMode": "RTU"}, "serialName: is missing: RTU needs the serial port"),
        ({"serialName": "/dev/x", "communicateMode": "udp"}, "ip: is missing: UDP needs the device's address"),
        ({"ip": "  ", "communicateMode": "TCP"}, "ip: is missing"),
        ({"serialName": "/dev/x", "dataBits": 7}, "dataBits: 7 is not possible: RTU takes 8"),
        ({"serialName": "/dev/x", "dataBits": 6, "communicateMode": "ascii"}, "dataBits: 6 is not possible"),
        ({"serialName": "/dev/x", "parity": "mark"}, "parity: 'mark' is not one of none, even, odd, N, E, O"),
        ({"serialName": "/dev/x", "stopBits": 3}, "stopBits: 3"),
        ({"serialName": "/dev/x", "baudRate": 0}, "baudRate: 0"),
        ({"ip": "h", "communicateMode": "TLS", "certFile": "c"}, "keyFile: is missing: certFile needs it"),
        ({"ip": "h", "communicateMode": "TLS", "keyFile": "k"}, "certFile: is missing: keyFile needs it"),
        ({"ip": "h", "port": 0}, "port: 0"),
        ({"ip": "h", "port": 65536}, "port: 65536"),
        ({"ip": "h", "slaveID": 256}, "slaveID: 256"),
        ({"ip": "h", "timeout": 60001}, "timeout: 60001"),
        ({"ip": "h", "interFrameDelay": 1001}, "interFrameDelay: 1001"),
        ({"ip": "h", "maxRegisters": 0}, "maxRegisters: 0"),
        ({"ip": "h", "maxRegisters": 126}, "maxRegisters: 126"),
        ({"ip": "h", "maxGap": -1}, "maxGap: -1"),
    ),
)
def test_a_bad_protocol_config_breaks_the_device_and_says_where(config: dict[str, Scalar], says: str) -> None:
    result = declared(config, {"register": "HoldingRegister", "offset": 0})
    assert result.config is None
    assert result.problem.startswith(f"spec.protocol.configData.{says}")
    assert result.problems == {"p0": result.problem}


@pytest.mark.parametrize(
    ("config", "mode", "port"),
    (
        ({"ip": "h"}, "TCP", 502),
        ({"ip": "h", "communicateMode": "tcp", "port": " 1502 "}, "TCP", 1502),
        ({"IP": "h", "CommunicateMode": "Tls"}, "TLS", 802),
        ({"ip": "h", "communicateMode": "UDP"}, "UDP", 502),
        ({"ip": "h", "communicateMode": "RTU-over-TCP"}, "RTUOVERTCP", 502),
        ({"ip": "h", "communicateMode": "RTUOverTCP"}, "RTUOVERTCP", 502),
        ({"serialName": "/dev/x"}, "RTU", None),
        ({"serialName": "/dev/x", "communicateMode": "ascii", "dataBits": "7"}, "ASCII", None),
        ({"ip": "h", "serialName": "/dev/x", "communicateMode": "rtu"}, "RTU", None),
    ),
)
def test_modes_in_any_spelling(config: dict[str, Scalar], mode: str, port: int | None) -> None:
    result = declared(config)
    assert result.problem == ""
    assert (result.config.mode, result.config.communicate_mode, result.config.port) == (mode, mode, port)
    if port is not None:
        assert result.config.endpoint == ("h", port)


@pytest.mark.parametrize(
    ("text", "letter"), (("None", "N"), ("", "N"), ("n", "N"), ("Even", "E"), ("E", "E"), ("ODD", "O"), ("o", "O"))
)
def test_parity_in_any_spelling(text: str, letter: str) -> None:
    assert declared({"serialName": "/dev/x", "parity": text}).config.parity == letter


def test_upstreams_serial_sample_is_taken_as_it_is() -> None:
    sample: dict[str, Scalar] = {"communicateMode": "RTU", "slaveID": 4, "serialName": "/dev/ttyUSB0",
        "baudRate": 19200, "dataBits": 8, "stopBits": 1, "parity": "even", "rs485Enabled": True}  # fmt: skip
    result = declared(sample, {"dataType": "double", "register": "InputRegister", "offset": 0, "limit": 4, "scale": 1})
    assert (result.reason(), result.warnings) == ("", ())
    assert (result.config.baud_rate, result.config.parity, result.config.rs485_enabled) == (19200, "E", True)


def test_what_belongs_to_another_mode_is_warned_about_and_a_default_is_not() -> None:
    path = "spec.protocol.configData"
    tcp = declared({"ip": "h", "parity": "even", "caFile": "ca.pem", "baudRate": 9600, "serialName": ""})
    assert tcp.config is not None
    assert tcp.warnings == (f"{path}.parity: is not used in mode TCP", f"{path}.caFile: is not used in mode TCP")
    rtu = declared({"serialName": "/dev/x", "ip": "h", "port": 502, "communicateMode": "RTU", "slaveID": 250})
    assert rtu.warnings == (
        f"{path}.slaveID: 250 is reserved on a serial line: devices have 1 to 247",
        f"{path}.ip: is not used in mode RTU",
        f"{path}.port: is not used in mode RTU",
    )
    assert declared({"ip": "h", "communicateMode": "TLS", "caFile": "ca.pem", "serverName": "x"}).warnings == ()


def test_upstreams_timeout_without_a_unit_is_warned_about_and_not_used() -> None:
    result = declared({"ip": "h", "timeout": 5})
    assert result.config.timeout == 2000
    assert result.warnings == ("spec.protocol.configData.timeout: 5 is less than 50 milliseconds: 2000 is used",)
    assert declared({"ip": "h", "timeout": "50"}).config.timeout == 50


def test_what_means_the_same_is_the_same_config() -> None:
    """A device is connected anew only if its config differs."""
    assert declared({"ip": "h"}).config == declared({"ip": " h ", "port": "502", "communicateMode": "Tcp"}).config


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
