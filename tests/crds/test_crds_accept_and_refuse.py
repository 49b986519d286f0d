"""The CustomResourceDefinitions as an API server uses them: what they accept, and each refusal with its line."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudcore import crds
from kubetwin.apiserver.schema import StructuralSchema, compile_schema

SAMPLES = sorted((Path(__file__).parent.parent / "data" / "crds").glob("*.yaml"))
DEFINITIONS = {definition["spec"]["names"]["kind"]: definition for definition in crds.load()}
DEVICE_KINDS = ("DeviceModel", "Device", "DeviceStatus")


def version(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = DEFINITIONS[kind]["spec"]["versions"][0]
    return found


@pytest.fixture(scope="module")
def schemas() -> dict[str, StructuralSchema]:
    return {kind: compile_schema(version(kind)["schema"]["openAPIV3Schema"]) for kind in DEFINITIONS}


def device(spec: dict[str, Any] | None = None, **prop: Any) -> dict[str, Any]:
    """A device that is accepted, with `spec` merged in and one property made of `prop`."""
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "Device",
        "metadata": {"name": "d", "namespace": "plant"},
        "spec": {"deviceModelRef": {"name": "m"}, "properties": [{"name": "p", **prop}], **(spec or {})},
    }


def model(*properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"name": "m", "namespace": "plant"},
        "spec": {"properties": list(properties)},
    }


def refusals(schemas: dict[str, StructuralSchema], obj: dict[str, Any]) -> list[str]:
    schema = schemas[obj["kind"]]
    pruned, unknown = schema.prune(obj)
    assert unknown == []
    return [str(problem) for problem in schema.validate(schema.default(pruned))]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_stored_as_they_are(schemas: dict[str, StructuralSchema], path: Path) -> None:
    objects = list(yaml.safe_load_all(path.read_text()))
    assert objects
    for obj in objects:
        before = copy.deepcopy(obj)
        assert refusals(schemas, obj) == []
        assert schemas[obj["kind"]].default(schemas[obj["kind"]].prune(obj)[0]) == before


IN_THE_WILD = {
    "empty desired": device(desired={"value": ""}),
    "huge cycles": device({"stateReport": {"reportCycle": 10**10}}, collectCycle=10**10, reportCycle=10**10),
    "no protocol": device({"nodeName": "edge"}),
    "no properties": device({"properties": []}),
    "stream property": device({"properties": [{"name": "saveFrame"}, {"name": "saveVideo"}]}),
    "nested config": device({"protocol": {"configData": {"a": {"b": [1, {"c": 2}]}}}}),
    "port unset": device(pushMethod={"http": {"port": 0}}),
    "old status": {**device(), "status": {"reportCycle": -1, "twins": [{"propertyName": "x"}]}},
    "empty limits": model({"name": "p", "type": "INT", "minimum": "", "maximum": ""}),
    "one limit": model({"name": "p", "type": "INT", "minimum": "5", "maximum": ""}),
    "no type": model({"name": "p", "minimum": "x", "maximum": "a"}),
    "limits of text": model({"name": "p", "type": "STRING", "minimum": "z", "maximum": "a"}),
    "equal limits": model({"name": "p", "type": "DOUBLE", "minimum": "1e-3", "maximum": "+.001"}),
    "numbers, not text": model({"name": "p", "type": "INT", "minimum": "9", "maximum": "10"}),
    "empty model": {"kind": "DeviceModel", "metadata": {"name": "m"}},
}


@pytest.mark.parametrize("obj", IN_THE_WILD.values(), ids=IN_THE_WILD.keys())
def test_objects_in_the_wild_are_accepted(schemas: dict[str, StructuralSchema], obj: dict[str, Any]) -> None:
    assert refusals(schemas, obj) == []


TYPES = '"INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"'
NEGATIVE = "should be greater than or equal to 0"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type": (
        model({"name": "p", "type": "INTEGER"}),
        f'spec.properties[0].type: Unsupported value: "INTEGER": supported values: {TYPES}',
    ),
    "access mode": (
        model({"name": "p", "accessMode": "WriteOnly"}),
        'spec.properties[0].accessMode: Unsupported value: "WriteOnly": supported values: "ReadWrite", "ReadOnly"',
    ),
    "nameless model property": (model({"type": "INT"}), "spec.properties[0].name: Required value"),
    "duplicate model property": (
        model({"name": "a"}, {"name": "b"}, {"name": "a"}),
        'spec.properties[2]: Duplicate value: {"name":"a"}',
    ),
    "minimum over maximum": (
        model({"name": "p", "type": "INT", "minimum": "10", "maximum": "9"}),
        "spec.properties[0].minimum: Invalid value: minimum 10 must not be greater than maximum 9",
    ),
    "minimum of words": (
        model({"name": "p", "type": "FLOAT", "minimum": "low"}),
        (
            "spec.properties[0].minimum: Invalid value: minimum must be "
            'a decimal number in quotes, such as "-20" or "0.5", '
            'or "" for no limit'
        ),
    ),
    "maximum of words": (
        model({"name": "p", "type": "DOUBLE", "minimum": "1", "maximum": "1,5"}),
        (
            "spec.properties[0].maximum: Invalid value: maximum must be "
            'a decimal number in quotes, such as "140" or "0.5", '
            'or "" for no limit'
        ),
    ),
    "minimum not quoted": (
        model({"name": "p", "type": "INT", "minimum": 1}),
        (
            'spec.properties[0].minimum: Invalid value: "integer": '
            "spec.properties[0].minimum in body must be of type "
            'string: "integer"'
        ),
    ),
    "duplicate property": (
        device({"properties": [{"name": "temp"}, {"name": "temp"}]}),
        'spec.properties[1]: Duplicate value: {"name":"temp"}',
    ),
    "nameless property": (device({"properties": [{"collectCycle": 1}]}), "spec.properties[0].name: Required value"),
    "collect cycle": (
        device(collectCycle=-1),
        f"spec.properties[0].collectCycle: Invalid value: -1: spec.properties[0].collectCycle in body {NEGATIVE}",
    ),
    "report cycle": (
        device(reportCycle=-5),
        f"spec.properties[0].reportCycle: Invalid value: -5: spec.properties[0].reportCycle in body {NEGATIVE}",
    ),
    "state cycle": (
        device({"stateReport": {"reportCycle": -1}}),
        f"spec.stateReport.reportCycle: Invalid value: -1: spec.stateReport.reportCycle in body {NEGATIVE}",
    ),
    "cycle as text": (
        device(collectCycle="1s"),
        (
            'spec.properties[0].collectCycle: Invalid value: "string": '
            "spec.properties[0].collectCycle in body must be of "
            'type integer: "string"'
        ),
    ),
    "model reference": (device({"deviceModelRef": {}}), "spec.deviceModelRef.name: Required value"),
    "empty model reference": (
        device({"deviceModelRef": {"name": ""}}),
        (
            'spec.deviceModelRef.name: Invalid value: "": '
            "spec.deviceModelRef.name in body should be at least 1 chars long"
        ),
    ),
    "null model reference": (device({"deviceModelRef": None}), "spec.deviceModelRef: Required value"),
    "no spec": ({"kind": "Device"}, "spec: Required value"),
    "desired without value": (
        device(desired={"metadata": {}}),
        "spec.properties[0].desired.value: Required value",
    ),
    "desired as number": (
        device(desired={"value": 5}),
        (
            'spec.properties[0].desired.value: Invalid value: "integer": '
            "spec.properties[0].desired.value in body must be "
            'of type string: "integer"'
        ),
    ),
    "http port": (
        device(pushMethod={"http": {"port": 65536}}),
        (
            "spec.properties[0].pushMethod.http.port: Invalid value: "
            "65536: spec.properties[0].pushMethod.http.port in body "
            "should be less than or equal to 65535"
        ),
    ),
    "mqtt qos": (
        device(pushMethod={"mqtt": {"qos": 3}}),
        (
            "spec.properties[0].pushMethod.mqtt.qos: Invalid value: 3: "
            "spec.properties[0].pushMethod.mqtt.qos in body "
            "should be less than or equal to 2"
        ),
    ),
    "twin without value": (
        {"kind": "DeviceStatus", "status": {"twins": [{"propertyName": "p", "reported": {}}]}},
        "status.twins[0].reported.value: Required value",
    ),
}


@pytest.mark.parametrize(("obj", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_field(schemas: dict[str, StructuralSchema], obj: dict[str, Any], line: str) -> None:
    assert refusals(schemas, obj) == [line]


def test_unknown_fields_are_dropped_outside_of_free_places(schemas: dict[str, StructuralSchema]) -> None:
    obj = device({"nodename": "e", "protocol": {"protocolName": "modbus", "configData": {"ip": "x"}, "conf": 1}}, x=1)
    pruned, unknown = schemas["Device"].prune(obj)
    assert unknown == ["spec.nodename", "spec.properties[0].x", "spec.protocol.conf"]
    assert pruned["spec"]["protocol"] == {"protocolName": "modbus", "configData": {"ip": "x"}}


def test_ten_thousand_properties_are_possible(schemas: dict[str, StructuralSchema]) -> None:
    properties = [{"name": f"p{i}", "type": "INT", "minimum": "0", "maximum": "1"} for i in range(10_001)]
    assert refusals(schemas, model(*properties[:2_000])) == []
    assert (
        refusals(
            schemas, {**device(), "spec": {**device()["spec"], "properties": [{"name": p["name"]} for p in properties]}}
        )
        == []
    )
    limit = version("DeviceModel")["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["properties"]
    assert limit["maxItems"] == 10_000


def test_kinds_are_those_of_upstream_plus_columns() -> None:
    for kind in DEVICE_KINDS:
        spec = DEFINITIONS[kind]["spec"]
        assert (spec["group"], spec["scope"]) == ("devices.kubeedge.io", "Namespaced")
        assert [(v["name"], v["served"], v["storage"]) for v in spec["versions"]] == [("v1beta1", True, True)]
        assert spec["names"]["categories"] == ["kubetwin"]
        assert "subresources" not in version(kind)
    assert [DEFINITIONS[kind]["spec"]["names"]["shortNames"] for kind in DEVICE_KINDS] == [["dm"], ["dev"], ["devst"]]
    columns = {
        kind: [(c["name"].upper(), c.get("priority", 0)) for c in version(kind)["additionalPrinterColumns"]]
        for kind in DEVICE_KINDS
    }
    assert columns == {
        "DeviceModel": [("PROTOCOL", 0), ("AGE", 0)],
        "Device": [("MODEL", 0), ("NODE", 0), ("PROTOCOL", 0), ("AGE", 0)],
        "DeviceStatus": [("STATE", 0), ("TWINS", 0), ("LAST-ONLINE", 0), ("AGE", 0), ("REASON", 1)],
    }
    for kind, scope in (("ObjectSync", "Namespaced"), ("ClusterObjectSync", "Cluster")):
        spec = DEFINITIONS[kind]["spec"]
        assert (spec["group"], spec["scope"]) == ("reliablesyncs.kubeedge.io", scope)
        assert version(kind)["name"] == "v1alpha1"
        assert version(kind)["subresources"] == {"status": {}}


def test_names_of_definitions_follow_from_group_and_plural() -> None:
    for definition in DEFINITIONS.values():
        spec = definition["spec"]
        assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"


def undescribed(schema: dict[str, Any], path: str) -> list[str]:
    missing = [] if "description" in schema or path.endswith((".metadata", "[]")) else [path]
    for name, part in schema.get("properties", {}).items():
        missing += undescribed(part, f"{path}.{name}")
    if "items" in schema:
        missing += undescribed(schema["items"], f"{path}[]")
    return missing


def test_every_field_is_explained() -> None:
    for kind in DEFINITIONS:
        assert undescribed(version(kind)["schema"]["openAPIV3Schema"], kind) == []


def test_render_is_what_load_gives() -> None:
    assert list(yaml.safe_load_all(crds.render())) == crds.load()


def test_loading_needs_no_rule_engine() -> None:
    code = "import sys, cloudcore.crds as c; c.load(); sys.exit('cel_expr_python' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
