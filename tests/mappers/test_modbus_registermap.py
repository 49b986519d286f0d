"""Register maps and manifests as simulated devices, and the page that documents them."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dmi.errors import ConfigError
from dmi.types import ModelProperty
from dmi.values import check_range, format_value
from mappers.drivers.modbus import ModbusVisitor
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.drivers.modbus.codec import decode_bits, decode_registers
from mappers.drivers.modbus.simulator import Scene, Simulator
from mappers.drivers.modbus.simulator.faults import parse_faults
from mappers.drivers.modbus.simulator.memory import Memory
from mappers.drivers.modbus.simulator.models import load_manifests, scene_of_manifests
from mappers.drivers.modbus.simulator.registermap import load_map, scene_of_map
from mappers.drivers.modbus.simulator.waves import Wave, WaveKind, value_at

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/simulate-modbus.md").read_text()


def written(tmp_path: Path, text: Any) -> Path:
    file = tmp_path / "registers.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return file


def scene(tmp_path: Path, *entries: dict[str, Any], **rest: Any) -> Scene:
    return scene_of_map(load_map(written(tmp_path, {"registers": list(entries)})), **rest)


def test_the_example_of_the_page_holds_what_it_says(tmp_path: Path) -> None:
    example = re.search(r"<!-- example: registers.yaml -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    made = scene_of_map(load_map(written(tmp_path, example[1])), seed=3)
    memory = Memory(made.units)
    assert memory.units == (1, 2)
    assert memory.read(1, "HoldingRegister", 0, 4) == [215, 1, 2, 3]
    assert memory.read(1, "HoldingRegister", 10, 4) == [0x4C69, 0x6E65, 0x2031, 0]
    assert memory.read(1, "HoldingRegister", 20) == [1]
    assert memory.read(1, "HoldingRegister", 100, 50) == [0] * 50
    assert memory.read(1, "CoilRegister", 0) == [1]
    assert memory.read(1, "InputRegister", 0, 2) == [0, 0x41A0]  # 20.0, its registers reversed
    assert memory.read(2, "HoldingRegister", 0) == [7]
    assert memory.identity(1) == {0: "Acme", 1: "flow-meter", 2: "2.1", 4: "Line 1"}
    assert made.motion is not None
    assert made.motion.every_s == 0.5
    made.motion.move(memory, 15.0)
    assert memory.read(1, "InputRegister", 0, 4) == [0, 0x41F0, 0, 5]  # 30.0 a quarter of a period later
    made.motion.move(memory, 6.0)
    assert memory.read(1, "DiscreteInputRegister", 0) == [1]
    assert memory.read(1, "HoldingRegister", 0, 2) == [215, 1]
    with pytest.raises(KeyError):
        memory.read(1, "HoldingRegister", 4)


def test_every_fault_of_the_page_exists_and_every_fault_is_on_the_page() -> None:
    section = PAGE.split("## Faults")[1].split("While it runs")[0]
    shown = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    faults = parse_faults(shown)
    assert faults.exceptions == {(None, 40): 2}
    with pytest.raises(ConfigError) as caught:
        parse_faults(["x=1"])
    assert [text.partition("=")[0] for text in shown] == caught.value.problem.rpartition("there are ")[2].split(", ")


@pytest.mark.parametrize(
    ("entry", "says"),
    (
        ({"offset": 0}, r"registers\[0\].register: is missing"),
        ({"register": "Foo", "offset": 0}, r"registers\[0\].register: 'Foo' is not one of"),
        ({"register": "InputRegister", "offset": 0, "foo": 1}, r"registers\[0\].foo: there is no such key"),
        ({"register": "InputRegister", "offset": 0, "value": 70000}, r"registers\[0\]: 70000 does not fit"),
        ({"register": "InputRegister", "offset": 0, "value": "x"}, r"registers\[0\].value: 'x' is not a number"),
        ({"register": "InputRegister", "offset": 0, "wave": "sin"}, r"registers\[0\].wave: 'sin' is not one of sine"),
        ({"register": "InputRegister", "offset": 0, "wave": "sine", "value": 1}, r"value: a sine makes its own"),
        ({"register": "InputRegister", "offset": 0, "wave": "sine", "max": -1}, r"max: -1 is below min, 0"),
        ({"register": "InputRegister", "offset": 0, "wave": "sine", "min": -1}, r"registers\[0\]: -1.0 does not fit"),
        ({"register": "InputRegister", "offset": 0, "wave": "sine", "period": 0}, r"registers\[0\].period: 0"),
        ({"register": "InputRegister", "offset": 0, "value": [1, 2], "count": 2}, r"count: says what the list"),
        ({"register": "InputRegister", "offset": 65535, "count": 2}, r"past the last address"),
        ({"register": "InputRegister", "offset": 0, "dataType": "string", "limit": 2, "wave": "sine"}, "cannot move"),
    ),
)
def test_what_is_wrong_names_its_entry(tmp_path: Path, entry: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scene(tmp_path, entry)


@pytest.mark.parametrize(
    ("text", "says"),
    (
        ("[]", "is not a mapping"),
        ("{", "cannot be read"),
        ("registerz: []", "registerz: there is no such key"),
        ("units: {1: {foo: 1}}", r"units\[...\]: .* unknown field `foo`"),
        ("identity: {vendr: Acme}", "identity.*vendr"),
        ("units: {300: {registers: []}}", "units"),
        ("every: 1", "every"),
        ("{}", "registers: there are none"),
    ),
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scene_of_map(load_map(written(tmp_path, text)))


def test_two_entries_on_one_address_are_refused_but_two_bits_are_not(tmp_path: Path) -> None:
    at = {"register": "HoldingRegister", "offset": 0}
    with pytest.raises(ConfigError, match=r"registers\[1\]: HoldingRegister 1 is taken by registers\[0\]"):
        scene(tmp_path, {**at, "limit": 2}, {**at, "offset": 1})
    bits = scene(tmp_path, {**at, "bit": 0, "value": 1}, {**at, "bit": 4, "bitCount": 3, "value": 5})
    assert bits.units[0].holding_registers == {0: 0x51}


def test_units_get_the_common_registers(tmp_path: Path) -> None:
    made = scene(tmp_path, {"register": "HoldingRegister", "offset": 0, "value": 5}, units=(3, 4))
    assert set(made.units) == {3, 4}


# waves

KINDS = st.sampled_from(["sine", "ramp", "random-walk", "counter", "square"])


@given(KINDS, st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0.001, 1e4), st.floats(0, 1e3), st.integers())
def test_a_wave_stays_between_its_ends(
    kind: WaveKind, low: float, height: float, period_s: float, step: float, seed: int
) -> None:
    wave, rng, value = Wave(kind, low, low + height, period_s, step), random.Random(seed), None
    for second in range(20):
        value = value_at(wave, float(second), value, rng)
        assert low <= value <= low + height or value == pytest.approx(low + height)


def test_each_wave_moves_its_way() -> None:
    rng = random.Random(1)

    def at(kind: WaveKind, *times: float) -> list[float]:
        values: list[float] = []
        for t in times:
            values.append(value_at(Wave(kind, 0, 8, 4.0, 3), t, values[-1] if values else None, rng))
        return values

    assert at("sine", 0, 1, 3) == pytest.approx([4, 8, 0])
    assert at("ramp", 0, 1, 2, 4) == [0, 2, 4, 0]
    assert at("square", 0, 1.9, 2, 4) == [0, 0, 8, 0]
    assert at("counter", 0, 1, 2, 3) == [0, 3, 6, 0]
    walked = at("random-walk", *range(50))
    assert len(set(walked)) > 10
    assert all(abs(b - a) <= 3 for a, b in itertools.pairwise(walked))


# manifests


def test_the_example_manifests_make_a_device_that_fits_them() -> None:
    models, devices = load_manifests([ROOT / "examples/modbus/model.yaml", ROOT / "examples/modbus/device.yaml"])
    made = scene_of_manifests(models, devices, seed=1)
    memory = Memory(made.units)
    assert memory.units == (1,)
    assert memory.identity(1) == {0: "kubetwin", 1: "boiler", 2: "1", 4: "boiler-1"}
    assert made.motion is not None
    seen: dict[str, set[str]] = {}
    for second in range(30):
        made.motion.move(memory, float(second))
        for property_ in devices[0].properties:
            model = models[0].find(property_.name)
            assert model is not None
            text = reported(memory, 1, property_.visitor.config, model)
            check_range(text, model)
            seen.setdefault(property_.name, set()).add(text)
    moving = {name for name, texts in seen.items() if len(texts) > 1}
    assert moving == {"temperature", "pressure", "cycles", "door-open"}
    assert seen["set-point"] == {"20"}
    assert seen["label"] == {"label"}


def reported(memory: Memory, unit: int, config: Any, model: ModelProperty) -> str:
    from mappers.sdk.settings import decode_settings

    visitor = resolve_visitor(decode_settings(config, ModbusVisitor)[0], model)
    cells = memory.read(unit, visitor.register, visitor.offset, visitor.limit)
    if visitor.is_bits:
        return format_value(decode_bits([bool(c) for c in cells], visitor, model.type), model.type)
    return format_value(decode_registers(cells, visitor, model.type), model.type)


FITTING = {*((t, d) for t in ("FLOAT", "DOUBLE") for d in ("int", "int16", "uint32", "bcd", "float", "double")),
           *(("INT", d) for d in ("int", "int16", "uint32", "bcd")), ("BOOLEAN", "boolean"), ("BOOLEAN", "int"),
           ("STRING", "string"), ("BYTES", "bytes")}  # fmt: skip


@given(
    type_=st.sampled_from(["INT", "FLOAT", "DOUBLE", "BOOLEAN", "STRING", "BYTES"]),
    data_type=st.sampled_from(["", "int", "int16", "uint32", "bcd", "float", "double", "string", "boolean", "bytes"]),
    scale=st.sampled_from(["1", "0.1", "0.001", "10"]),
    bounds=st.sampled_from(
        [("", ""), ("0", "1"), ("-20", "140"), ("-5", ""), ("", "7"), ("300", "100000"), ("x", "y")]
    ),
    register=st.sampled_from(["HoldingRegister", "InputRegister", "CoilRegister"]),
)
def test_any_model_makes_a_device_whose_values_are_of_its_types(
    type_: Any, data_type: str, scale: str, bounds: tuple[str, str], register: str
) -> None:
    from dmi.types import DeviceModel, Visitor

    config: dict[str, Any] = {"register": register, "offset": 3, "scale": scale, "dataType": data_type}
    if data_type in ("string", "bytes") or type_ in ("STRING", "BYTES"):
        config["limit"] = 4
    model = ModelProperty("p", type_, "ReadOnly", bounds[0], bounds[1], visitor=Visitor("modbus", config))
    try:
        made = scene_of_manifests([DeviceModel("ns", "m", (model,))], [])
    except ConfigError as error:
        where = error.path
    else:
        where = ""
        memory = Memory(made.units)
        for second in range(5):
            if made.motion is not None:
                made.motion.move(memory, float(second))
            if data_type == "" or (type_, data_type) in FITTING:
                reported(memory, 0, config, model)
    assert not where or where.startswith("ns/m: p")


def test_a_model_without_places_asks_for_the_device() -> None:
    models, _ = load_manifests([ROOT / "examples/modbus/model.yaml"])
    with pytest.raises(ConfigError, match="give the Device's manifest too"):
        scene_of_manifests(models, [])


def test_a_device_without_its_model_is_named() -> None:
    _, devices = load_manifests([ROOT / "examples/modbus/device.yaml"])
    with pytest.raises(ConfigError, match=r"default/boiler-1: spec.deviceModelRef.name: model 'default/boiler'"):
        scene_of_manifests([], devices)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"registers.yaml: cannot be read"):
        load_manifests([written(tmp_path, "a: [")])


async def test_a_map_runs_and_moves(tmp_path: Path) -> None:
    entry = {"register": "InputRegister", "offset": 0, "wave": "counter"}
    made = scene_of_map(load_map(written(tmp_path, {"every": 10, "registers": [entry]})))
    async with Simulator(scene=made) as simulator:
        deadline = asyncio.get_running_loop().time() + 10
        while await simulator.read("InputRegister", 0) == [0]:  # nobody tells of a move
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
