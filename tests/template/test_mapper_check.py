"""`kubetwin mapper check`: every problem with its file, object and path; nothing said about what is right."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kubetwin import manifest_schema
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
        f"device default/boiler-1: {path}: 70000 is not accepted: expected a whole number, 0 to 65535",
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
        (
            "device default/boiler-1: spec.protocol.configData.frobnicate: is not used by modbus;"
            " `kubetwin mapper explain modbus` lists the keys"
        ),
    ]
    assert said[-1] == "1 device, 1 model: 4 errors, 0 warnings"


def test_every_wrong_key_of_a_property_is_named(tmp_path: Path, boiler: dict[str, Any]) -> None:
    config = {"register": "HoldingRegister", "offset": "first", "limit": -1, "deadband": "much", "heartbeat": -1}
    boiler["spec"]["properties"][4]["visitors"]["configData"] = config
    at = "device default/boiler-1: spec.properties[4].visitors.configData"
    assert lines(tmp_path, boiler) == [
        f"{at}.deadband: 'much' is not accepted: expected a number, 0 or more",
        f"{at}.heartbeat: -1 is not accepted: expected a whole number, 0 or more",
        f"{at}.offset: 'first' is not accepted: expected a whole number, 0 to 65535",
        f"{at}.limit: -1 is not accepted: expected a whole number, 0 to 2000",
        "1 device, 1 model: 4 errors, 0 warnings",
    ]


def test_a_key_that_nobody_reads_is_refused_with_the_one_that_was_meant(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["protocol"]["configData"]["slavID"] = 3
    boiler["spec"]["protocol"]["configData"]["mapper"] = "modbus-basement"  # the edge core's
    boiler["spec"]["properties"][0]["visitors"]["configData"]["deadbnad"] = 3
    assert lines(tmp_path, boiler) == [
        "device default/boiler-1: spec.protocol.configData.slavID: is not used by modbus: did you mean slaveID?",
        (
            "device default/boiler-1: spec.properties[0].visitors.configData.deadbnad: is not used by modbus:"
            " did you mean deadband?"
        ),
        "1 device, 1 model: 2 errors, 0 warnings",
    ]


@pytest.mark.parametrize(
    ("index", "desired", "config", "problem"),
    (
        (4, "95", {"scale": 0.001}, "95"),
        (4, "21", {"register": "InputRegister"}, "cannot be written"),
        (6, "a text that is longer than sixteen bytes", {}, "40 bytes do not fit the 16"),
    ),
    ids=("too large for its register", "a register to read only", "too long"),
)
def test_a_desired_value_that_the_device_cannot_hold_is_refused(
    tmp_path: Path, boiler: dict[str, Any], index: int, desired: str, config: dict[str, Any], problem: str
) -> None:
    property_ = boiler["spec"]["properties"][index]
    property_["desired"] = {"value": desired}
    property_["visitors"]["configData"].update(config)
    said = lines(tmp_path, boiler)
    assert said[0].startswith(f"device default/boiler-1: spec.properties[{index}].desired.value: ")
    assert problem in said[0]
    assert len(said) == 2


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
    assert "spec.properties[0].visitors.configData.deadband: -1 is not accepted: expected a number, 0 or more" in said
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
        "device default/boiler-1: spec.properties[0].collectCyle: no such field; the API server would drop it:"
        " did you mean collectCycle?"
    )


def test_what_the_api_refuses_is_said_once(tmp_path: Path, boiler: dict[str, Any]) -> None:
    properties = boiler["spec"]["properties"]
    properties[0]["collectCycle"] = "fast"
    properties[1]["pushMethod"] = {"mqtt": {"address": "tcp://broker", "topic": "t", "qos": 5}}
    properties[2]["pushMethod"] = {"kafka": {}}
    properties[4]["desired"]["value"] = 60
    at = "device default/boiler-1: spec.properties"
    assert lines(tmp_path, boiler) == [
        (
            f"{at}[2].pushMethod.kafka: no such field; the API server would drop it;"
            " there are http, mqtt, otel, dbMethod, anomalyDetection"
        ),
        f"{at}[0].collectCycle: 'fast' is not accepted: it must be of type integer",
        f"{at}[1].pushMethod.mqtt.qos: 5 is not accepted: it should be less than or equal to 2",
        f"{at}[4].desired.value: 60 is not accepted: it must be of type string: put it in quotes",
        "1 device, 1 model: 4 errors, 0 warnings",
    ]


def test_a_missing_object_is_said_once(tmp_path: Path, boiler: dict[str, Any]) -> None:
    del boiler["spec"]["deviceModelRef"]
    assert lines(tmp_path, boiler) == [
        "device default/boiler-1: spec.deviceModelRef: Required value",
        "1 device, 1 model: 1 error, 0 warnings",
    ]


def test_names_and_labels_are_as_the_api_wants_them(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["metadata"] |= {"name": "Boiler_1", "label": {}}
    said = lines(tmp_path, boiler)
    assert said[0] == (
        "device default/Boiler_1: metadata.label: no such field; the API server would drop it: did you mean labels?"
    )
    assert said[1].startswith('device default/Boiler_1: metadata.name: Invalid value: "Boiler_1": a lowercase RFC 1123')


def test_a_setting_without_a_value_is_refused(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["protocol"]["configData"]["ip"] = None
    assert "spec.protocol.configData.ip: has no value: give it one, or leave" in lines(tmp_path, boiler)[0]


def test_what_no_node_or_no_mapper_will_run_is_warned_about(tmp_path: Path, boiler: dict[str, Any]) -> None:
    del boiler["spec"]["nodeName"]
    boiler["spec"]["protocol"] = {}
    for p in boiler["spec"]["properties"]:
        del p["visitors"]
    said = lines(tmp_path, boiler, exit_code=0)
    assert "spec.nodeName: warning: is missing" in said[0]
    assert "spec.protocol.protocolName: warning: is missing" in said[1]


def test_a_model_of_another_protocol_is_warned_about(tmp_path: Path, boiler: dict[str, Any]) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(model.read_text().replace("protocol: modbus", "protocol: virtual"))
    assert "the model is for 'virtual', and the device speaks 'modbus'" in lines(tmp_path, boiler, exit_code=0)[0]


def test_a_model_with_errors_is_not_called_missing(tmp_path: Path, boiler: dict[str, Any]) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(model.read_text().replace("type: FLOAT", "type: float"))
    said = lines(tmp_path, boiler)
    assert "warning: model 'default/boiler' has errors: the device is checked when they are gone" in said[0]
    assert "spec.properties[0].type: Unsupported value" in said[1]
    assert said[-1] == "1 device, 1 model: 3 errors, 1 warning"


def test_methods_call_properties_that_there_are(tmp_path: Path, boiler: dict[str, Any]) -> None:
    boiler["spec"]["methods"] = [{"name": "start", "propertyNames": ["pump", "pomp"]}]
    said = lines(tmp_path, boiler)
    assert said[0] == (
        "device default/boiler-1: spec.methods[0].propertyNames[1]: the device has no property 'pomp':"
        " did you mean pump?"
    )
    assert len(said) == 2


def test_a_sink_whose_library_is_not_here_may_be_where_the_mapper_runs(
    tmp_path: Path, boiler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    boiler["spec"]["properties"][0]["pushMethod"] = {"mqtt": {"address": "tcp://broker", "topic": "t"}}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiomqtt" else find_spec(name))
    said = lines(tmp_path, boiler, exit_code=0)
    assert "spec.properties[0].pushMethod.mqtt: warning: needs the library aiomqtt" in said[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    (
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: 'a' is there twice"),
        ('{"a": {"b": 1, "b": 2}}', "line 1, column 16: 'b' is there twice"),
        ("a: [1\nb: 2\n", "line 2, column 2: "),
        ("at: 2026-13-45\n", "month must be in 1..12"),
        ("a: " + "9" * 5000, "digits"),
    ),
)
def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    result = check(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}/broken.yaml: cannot be read: " in result.output
    assert problem in result.output


def test_merged_keys_are_not_there_twice(tmp_path: Path, boiler: dict[str, Any]) -> None:
    text = yaml.safe_dump(boiler).replace("ip: 127.0.0.1", "<<: {ip: 127.0.0.2, timeout: 500}\n      ip: 127.0.0.1")
    (tmp_path / "device.yaml").write_text(text)
    assert check(tmp_path).exit_code == 0, check(tmp_path).output


@pytest.mark.parametrize(
    ("field", "text", "problem", "exit_code"),
    (
        ("kind", "Devise", "kind: 'Devise' is no kind of devices.kubeedge.io; there are Device and DeviceModel", 1),
        ("apiVersion", "example.com/v1", "apiVersion: warning: is not devices.kubeedge.io/v1beta1: not checked", 0),
    ),
)
def test_what_is_nearly_a_device_is_not_overlooked(
    tmp_path: Path, boiler: dict[str, Any], field: str, text: str, problem: str, exit_code: int
) -> None:
    boiler[field] = text
    assert lines(tmp_path, boiler, exit_code=exit_code)[0] == problem


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
    assert "v1alpha2' is not served; write devices.kubeedge.io/v1beta1" in lines(tmp_path, boiler)[0]


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
            "message": "70000 is not accepted: expected a whole number, 0 to 65535",
            "level": "error",
        }
    ]


def test_the_schema_needs_what_a_generated_project_installs_and_no_more(tmp_path: Path, boiler: dict[str, Any]) -> None:
    """So its CI applies the schema: kubetwin[testkit] brings the one library that is not every mapper's."""
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    installed, extras = set(project["dependencies"]), ["testkit"]
    while extras:
        for requirement in project["optional-dependencies"][extras.pop()]:
            ours = re.fullmatch(r"kubetwin\[(.*)\]", requirement)
            extras += ours[1].split(",") if ours else []
            installed |= set() if ours else {requirement}
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("-", "_") for requirement in installed}  # type: ignore[index]
    assert "cel_expr_python" in names
    absent = {"aiohttp", "cryptography", "kubernetes", "picows", "prometheus_client", "pymodbus", "rich", "serial"}
    assert not absent & names
    boiler["spec"]["properties"][0]["collectCyle"] = 500
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(boiler))
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(absent)}))
from kubetwin.cli import main
main(["mapper", "check", {str(tmp_path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "collectCyle: no such field" in done.stdout


def test_without_the_libraries_of_the_schema_the_rest_is_checked_and_that_is_said(
    tmp_path: Path, boiler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubetwin.apiserver.schema", None)
    manifest_schema._definitions.cache_clear()
    try:
        boiler["spec"]["properties"][2]["visitors"]["configData"]["offset"] = 70000
        said = lines(tmp_path, boiler)
    finally:
        manifest_schema._definitions.cache_clear()
    assert "70000 is not accepted" in said[0]
    assert "not checked against the API's schema" in said[-1]
