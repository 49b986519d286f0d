"""`kubetwin mapper check`: every problem with its file, object and path; nothing said about what is right."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kubetwin import mapper_check
from kubetwin.cli import main

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["mapper", "check", *map(str, arguments)])


@pytest.fixture
def boiler(tmp_path: Path) -> dict[str, Any]:
    """The device of `examples/modbus`, to be broken."""
    (tmp_path / "model.yaml").write_text((EXAMPLES / "modbus" / "model.yaml").read_text())
    device: dict[str, Any] = yaml.safe_load((EXAMPLES / "modbus" / "device.yaml").read_text())
    return device


def lines(tmp_path: Path, *objects: Any, exit_code: int = 1) -> list[str]:
    """What is said about these objects, without their file."""
    file = tmp_path / "device.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    result = check(tmp_path)
    assert result.exit_code == exit_code, result.output
    return [line.removeprefix(f"{file}: ") for line in result.output.splitlines()]


def test_the_examples_are_right() -> None:
    folders = sorted({p.parent for p in EXAMPLES.glob("*/device.yaml")})
    assert folders
    for folder in folders:
        result = check(folder)
        assert result.exit_code == 0, result.output
        assert "0 errors, 0 warnings" in result.output


def test_a_wrong_visitor_value_is_named_with_its_path_and_what_would_be_right(
    tmp_path: Path, boiler: dict[str, Any]
) -> None:
    boiler["spec"]["properties"][2]["visitors"]["configData"]["offset"] = 70000
    path = "spec.properties[2].visitors.configData.offset"
    assert lines(tmp_path, boiler) == [
        f"device default/boiler-1: {path}: 70000 is not accepted: expected int <= 65535",
        "1 device, 1 model: 1 error, 0 warnings",
    ]


def test_all_problems_are_named_at_once(tmp_path: Path, boiler: dict[str, Any]) -> None:
    properties = boiler["spec"]["properties"]
    del properties[0]["visitors"]["configData"]["register"]
    properties[1]["name"] = "presure"
    properties[4]["desired"]["value"] = "200"
    boiler["spec"]["protocol"]["configData"]["frobnicate"] = 1
    said = lines(tmp_path, boiler)
    assert sorted(said[:-1]) == [
        "device default/boiler-1: spec.properties[0].visitors.configData.register: is missing",
        (
            "device default/boiler-1: spec.properties[1].name: model 'boiler' has no property 'presure';"
            " it is not collected"
        ),
        "device default/boiler-1: spec.properties[4].desired.value: 200 is above the maximum 95",
        "device default/boiler-1: spec.protocol.configData.frobnicate: warning: is not used by modbus",
    ]
    assert said[-1] == "1 device, 1 model: 3 errors, 1 warning"


def test_paths_stay_right_behind_a_property_the_model_does_not_know(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["properties"][0]["name"] = "nothing"
    boiler["spec"]["properties"][3]["visitors"]["configData"]["offset"] = -1
    said = lines(tmp_path, boiler)
    assert any("spec.properties[3].visitors.configData.offset: -1" in line for line in said)
    assert len(said) == 3


def test_model_defaults_count(tmp_path: Path, boiler: dict[str, Any]) -> None:
    model = yaml.safe_load((tmp_path / "model.yaml").read_text())
    model["spec"]["properties"][0]["visitors"] = {
        "protocolName": "modbus",
        "configData": boiler["spec"]["properties"][0].pop("visitors")["configData"],
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
    assert lines(tmp_path, boiler, exit_code=0) == ["1 device, 1 model: 0 errors, 0 warnings"]


def test_report_keys_and_push_methods_are_checked_too(tmp_path: Path, boiler: dict[str, Any]) -> None:
    properties = boiler["spec"]["properties"]
    properties[0]["visitors"]["configData"]["deadband"] = -1
    properties[1]["pushMethod"] = {"mqtt": {"topic": "t"}}
    said = "\n".join(lines(tmp_path, boiler))
    assert "spec.properties[0].visitors.configData.deadband: -1 is not accepted: expected float >= 0" in said
    assert "spec.properties[1].pushMethod.mqtt.address: " in said


def test_warnings_do_not_fail(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["properties"][0]["collectCycle"] = 1_000_000_000
    said = lines(tmp_path, boiler, exit_code=0)
    assert said[0].startswith(
        "device default/boiler-1: spec.properties[0].collectCycle: warning: 1000000000 is 12 days"
    )


def test_fields_that_the_api_would_drop_are_named(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["properties"][0]["collectCyle"] = 500
    said = lines(tmp_path, boiler)
    assert said[0] == (
        "device default/boiler-1: spec.properties[0].collectCyle: no such field; the API server would drop it"
    )


def test_what_the_api_refuses_is_said_once(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["properties"][0]["collectCycle"] = "fast"
    said = lines(tmp_path, boiler)
    assert len(said) == 2
    assert "spec.properties[0].collectCycle: Invalid value" in said[0]


def test_nested_settings_are_refused(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["protocol"]["configData"]["serial"] = {"port": "/dev/ttyS0"}
    assert "spec.protocol.configData.serial: settings are flat" in lines(tmp_path, boiler)[0]


def test_a_device_without_its_model_or_with_an_unknown_protocol(tmp_path: Path, boiler: dict[str, Any]) -> None:
    other = yaml.safe_load(yaml.safe_dump(boiler))
    other["metadata"]["name"] = "boiler-2"
    other["spec"]["deviceModelRef"]["name"] = "kettle"
    boiler["spec"]["protocol"]["protocolName"] = "telepathy"
    for p in boiler["spec"]["properties"]:
        p["visitors"]["protocolName"] = "telepathy"
    said = lines(tmp_path, boiler, other)
    assert said[0].startswith(
        "device default/boiler-1: spec.protocol.protocolName: no driver 'telepathy' is installed; there is "
    )
    assert (
        "device default/boiler-2: spec.deviceModelRef.name: model 'default/kettle' is not among these files" in said[1]
    )


def test_a_device_that_is_declared_twice(tmp_path: Path, boiler: dict[str, Any]) -> None:
    said = lines(tmp_path, boiler, boiler)
    assert said[0] == f"device default/boiler-1: metadata.name: is declared in {tmp_path / 'device.yaml'} already"


def test_files_that_are_no_manifests_are_named_and_the_others_checked(tmp_path: Path, boiler: dict[str, Any]) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    (tmp_path / "service.yaml").write_text("apiVersion: v1\nkind: Service\n")
    (tmp_path / "words.yaml").write_text("just words\n")
    said = lines(tmp_path, boiler)
    assert said[0].startswith(f"{tmp_path}/binary.json: cannot be read: ")
    assert said[1].startswith(f"{tmp_path}/broken.yaml: cannot be read: ")
    assert said[2:] == ["1 device, 1 model: 2 errors, 0 warnings"]


@pytest.mark.parametrize(
    "text",
    (
        "a: &a {x: *a}\n",
        "a: &a [" + "x, " * 50 + "]\n" + "".join(f"{n}: &{n} [{f'*{p}, ' * 50}]\n" for p, n in pairwise("abcdef")),
    ),
    ids=("itself", "billions"),
)
def test_aliases_do_not_make_it_endless(tmp_path: Path, text: str) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "holds more than 1000000 values" in result.output


def test_lists_are_looked_into_and_a_missing_namespace_is_default(tmp_path: Path, boiler: dict[str, Any]) -> None:
    del boiler["metadata"]["namespace"]
    assert lines(tmp_path, {"apiVersion": "v1", "kind": "List", "items": [boiler]}, exit_code=0) == [
        "1 device, 1 model: 0 errors, 0 warnings"
    ]


def test_an_old_version_is_refused(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["apiVersion"] = "devices.kubeedge.io/v1alpha2"
    assert "v1alpha2 is not served; write devices.kubeedge.io/v1beta1" in lines(tmp_path, boiler)[0]


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "no Device and no DeviceModel" in result.output


def test_json_says_the_same(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["properties"][2]["visitors"]["configData"]["offset"] = 70000
    lines(tmp_path, boiler)
    result = check(tmp_path, "-o", "json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["devices"] == 1
    assert report["findings"] == [
        {
            "file": str(tmp_path / "device.yaml"),
            "object": "device default/boiler-1",
            "path": "spec.properties[2].visitors.configData.offset",
            "message": "70000 is not accepted: expected int <= 65535",
            "level": "error",
        }
    ]


def test_without_the_libraries_of_the_schema_the_rest_is_checked_and_that_is_said(
    tmp_path: Path, boiler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubetwin.apiserver.schema", None)
    mapper_check._schemas.cache_clear()
    try:
        boiler["spec"]["properties"][2]["visitors"]["configData"]["offset"] = 70000
        said = lines(tmp_path, boiler)
    finally:
        mapper_check._schemas.cache_clear()
    assert "70000 is not accepted" in said[0]
    assert "not checked against the API's schema" in said[-1]
