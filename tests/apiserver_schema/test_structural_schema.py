"""The structural schema engine: pruning, defaults, and what validation says, line by line as Kubernetes does."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetwin.apiserver import schema as package
from kubetwin.apiserver.schema import FieldError, SchemaError, compile_schema

STRING = {"type": "string"}
INTEGER = {"type": "integer"}


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def lines(schema: dict[str, Any], obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return [str(problem) for problem in compile_schema(schema).validate(obj, old)]


def test_exported_names() -> None:
    assert package.__all__ == ["FieldError", "Reason", "SchemaError", "StructuralSchema", "compile_schema"]


SAYS: list[tuple[dict[str, Any], Any, str]] = [
    (STRING, 1, 'Invalid value: "integer": a in body must be of type string: "integer"'),
    (STRING, None, 'Invalid value: "null": a in body must be of type string: "null"'),
    (INTEGER, 1.5, 'Invalid value: "number": a in body must be of type integer: "number"'),
    (INTEGER, True, 'Invalid value: "boolean": a in body must be of type integer: "boolean"'),
    (INTEGER, 2**63, 'Invalid value: "number": a in body must be of type integer: "number"'),
    ({"type": "integer", "minimum": 0}, -1, "Invalid value: -1: a in body should be greater than or equal to 0"),
    ({"type": "integer", "maximum": 2}, 3, "Invalid value: 3: a in body should be less than or equal to 2"),
    (
        {"type": "number", "minimum": 0.5, "exclusiveMinimum": True},
        0.5,
        "Invalid value: 0.5: a in body should be greater than 0.5",
    ),
    ({"type": "number", "multipleOf": 0.1}, 0.35, "Invalid value: 0.35: a in body should be a multiple of 0.1"),
    ({"type": "string", "minLength": 1}, "", 'Invalid value: "": a in body should be at least 1 chars long'),
    ({"type": "string", "maxLength": 2}, "ééé", "Too long: may not be more than 2 bytes"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "A\n", "Invalid value: \"A\\n\": a in body should match '^[a-z]+$'"),
    ({"type": "string", "pattern": "^a$"}, "a\n", "Invalid value: \"a\\n\": a in body should match '^a$'"),
    ({"type": "string", "enum": ["A", "B"]}, "C", 'Unsupported value: "C": supported values: "A", "B"'),
    ({"type": "integer", "enum": [1]}, 2, 'Unsupported value: 2: supported values: "1"'),
    (
        {"type": "array", "items": INTEGER, "minItems": 1},
        [],
        "Invalid value: 0: a in body should have at least 1 items",
    ),
    ({"type": "array", "items": INTEGER, "maxItems": 1}, [1, 2], "Too many: 2: must have at most 1 items"),
    (
        {"type": "string", "format": "date-time"},
        "2024-13-01T00:00:00Z",
        'Invalid value: "2024-13-01T00:00:00Z": a in body must be of type date-time: "2024-13-01T00:00:00Z"',
    ),
    (
        {"x-kubernetes-int-or-string": True},
        1.5,
        'Invalid value: "number": a in body must be of type integer,string: "number"',
    ),
]


@pytest.mark.parametrize(("schema", "value", "message"), SAYS)
def test_what_is_said_of_a_value(schema: dict[str, Any], value: Any, message: str) -> None:
    assert lines(objects(a=schema), {"a": value}) == [f"a: {message}"]


@pytest.mark.parametrize(
    ("schema", "value"),
    (
        (INTEGER, 3.0),
        ({"type": "number"}, 3),
        ({"type": "number", "multipleOf": 0.1}, 0.3),
        ({"type": "string", "maxLength": 2}, "éé"),
        ({"type": "string", "format": "date-time"}, "2024-01-01T00:00:00.5+01:00"),
        ({"type": "string", "format": "no-such-format"}, "x"),
        ({"type": "string", "nullable": True}, None),
        ({"x-kubernetes-int-or-string": True}, "50%"),
        ({"x-kubernetes-preserve-unknown-fields": True}, [{"a": None}]),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
    ),
)
def test_accepted_values(schema: dict[str, Any], value: Any) -> None:
    assert lines(objects(a=schema), {"a": value}) == []


def test_required_and_additional_properties() -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "object", "additionalProperties": STRING}},
    }
    assert lines(schema, {}) == ["a: Required value"]
    assert lines(schema, {"a": {"x": 1}}) == [
        'a.x: Invalid value: "integer": a.x in body must be of type string: "integer"'
    ]


def test_combinations() -> None:
    text = {"type": "string"}
    short, x = {"maxLength": 1}, {"pattern": "^x"}
    both = ["a: Too long: may not be more than 1 bytes", "a: Invalid value: \"yy\": a in body should match '^x'"]
    assert lines(objects(a={**text, "allOf": [short, x]}), {"a": "yy"}) == [
        *both,
        '<nil>: Invalid value: "": "a" must validate all the schemas (allOf). None validated',
    ]
    assert lines(objects(a={**text, "anyOf": [short, x]}), {"a": "yy"}) == [
        '<nil>: Invalid value: "": "a" must validate at least one schema (anyOf)',
        both[0],
    ]
    assert lines(objects(a={**text, "oneOf": [short, x]}), {"a": "x"}) == [
        '<nil>: Invalid value: "": "a" must validate one and only one schema (oneOf). Found 2 valid alternatives'
    ]
    assert lines(objects(a={**text, "not": x}), {"a": "x"}) == [
        '<nil>: Invalid value: "": "a" must not validate the schema (not)'
    ]


def keyed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {"type": "object", "required": ["name"], "properties": {"name": STRING, **properties}},
    }


def test_duplicates_in_maps_and_sets() -> None:
    assert lines(objects(a=keyed()), {"a": [{"name": "x"}, {"name": "y"}, {"name": "x"}, {"name": "x"}]}) == [
        'a[2]: Duplicate value: {"name":"x"}'
    ]
    texts = {"type": "array", "x-kubernetes-list-type": "set", "items": STRING}
    assert lines(objects(a=texts), {"a": ["x", "1", "x"]}) == ['a[2]: Duplicate value: "x"']


def test_an_update_is_not_blamed_for_what_was_there() -> None:
    schema = objects(a=INTEGER | {"minimum": 0}, b=STRING, c=keyed(v=INTEGER | {"minimum": 0}))
    old = {"a": -1, "b": "x", "c": [{"name": "1", "v": -1}, {"name": "2", "v": 1}]}
    assert lines(schema, old | {"b": "y", "c": list(reversed(old["c"]))}, old) == []  # type: ignore[call-overload]
    assert lines(schema, {"a": -2}, old) == ["a: Invalid value: -2: a in body should be greater than or equal to 0"]
    assert lines(schema, {"c": [{"name": "2", "v": -1}]}, old) == [
        "c[0].v: Invalid value: -1: c[0].v in body should be greater than or equal to 0"
    ]


def test_prune_names_what_it_drops_and_keeps_the_frame() -> None:
    schema = compile_schema(
        objects(
            spec=objects(items={"type": "array", "items": objects(a=STRING)}),
            free={
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {"a": objects(b=STRING)},
            },
            embedded={"x-kubernetes-embedded-resource": True, **objects(spec=objects(x=STRING))},
        )
    )
    frame = {"apiVersion": "v", "kind": "K", "metadata": {"name": "n", "odd": 1}}
    obj = {
        **frame,
        "spec": {"foo": 1, "items": [{"a": "x", "b": 1}, 5]},
        "free": {"z": {"y": 1}, "a": {"b": "x", "c": 1}},
        "embedded": {**frame, "spec": {"x": "1", "y": 2}},
        "extra": None,
    }
    before = copy.deepcopy(obj)
    pruned, dropped = schema.prune(obj)
    assert dropped == ["embedded.spec.y", "extra", "free.a.c", "spec.foo", "spec.items[0].b"]
    assert pruned == {
        **frame,
        "spec": {"items": [{"a": "x"}, 5]},
        "free": {"z": {"y": 1}, "a": {"b": "x"}},
        "embedded": {**frame, "spec": {"x": "1"}},
    }
    assert obj == before


def test_defaults_fill_in_and_nulls_count_as_absent() -> None:
    inner = {**objects(x=INTEGER | {"default": 3}), "default": {}}
    schema = compile_schema(
        objects(a=STRING | {"default": "d"}, b=STRING | {"default": "e", "nullable": True}, o=inner)
    )
    assert schema.default({}) == {"a": "d", "b": "e", "o": {"x": 3}}
    assert schema.default({"a": None, "b": None, "o": {"x": None}}) == {"a": "d", "b": None, "o": {"x": 3}}
    first, second = schema.default({}), schema.default({})
    first["o"]["x"] = 9
    assert second["o"] == {"x": 3}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"properties": {}}, "type: Required value: must not be empty at the root"),
    (STRING, 'type: Invalid value: "string": must be object at the root'),
    (objects(a={}), "properties[a].type: Required value: must not be empty for specified object fields"),
    (
        objects(a={"type": "array", "items": {}}),
        "properties[a].items.type: Required value: must not be empty for specified array items",
    ),
    (objects(a={"type": "array"}), "properties[a].items: Required value: must be specified"),
    (
        {"type": "object", "additionalProperties": STRING},
        "additionalProperties: Forbidden: must not be used at the root",
    ),
    (
        objects(a={"type": "string", "anyOf": [{"type": "string"}]}),
        "properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
    ),
    (
        {**objects(a=STRING), "anyOf": [{"properties": {"b": {"minLength": 1}}}]},
        "properties[b]: Required value: because it is defined in anyOf[0].properties[b]",
    ),
    (
        objects(a={"x-kubernetes-int-or-string": True, "x-kubernetes-preserve-unknown-fields": True}),
        (
            "properties[a].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if "
            "x-kubernetes-int-or-string is true"
        ),
    ),
    (
        objects(a={"type": "object", "x-kubernetes-embedded-resource": True}),
        (
            "properties[a].properties: Required value: must not be empty "
            "if x-kubernetes-embedded-resource is true without "
            "x-kubernetes-preserve-unknown-fields"
        ),
    ),
    (
        objects(metadata={"type": "object", "required": ["labels"]}),
        (
            "properties[metadata]: Forbidden: must not specify anything "
            "other than name and generateName, but metadata is "
            "implicitly specified"
        ),
    ),
    (objects(a={"$ref": "#/b", **STRING}), "properties[a].$ref: Forbidden: $ref is not supported"),
    (
        objects(a={"type": "object", "properties": {"b": STRING}, "additionalProperties": STRING}),
        "properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
    ),
    (
        objects(a={**keyed(), "items": objects(name=STRING)}),
        (
            "properties[a].items.properties[name].default: Required "
            "value: this property is in x-kubernetes-list-map-keys, "
            "so it must have a default or be a required property"
        ),
    ),
    (
        objects(a={"type": "string", "default": 1}),
        (
            'properties[a].default: Invalid value: "integer": '
            'properties[a].default in body must be of type string: "integer"'
        ),
    ),
]


@pytest.mark.parametrize(("schema", "line"), REFUSED)
def test_schemas_that_are_not_structural(schema: dict[str, Any], line: str) -> None:
    with pytest.raises(SchemaError) as refused:
        compile_schema(schema)
    assert [str(problem) for problem in refused.value.problems] == [line]


def test_a_pattern_must_compile() -> None:
    with pytest.raises(SchemaError) as refused:
        compile_schema(objects(a=STRING | {"pattern": "(x"}))
    (problem,) = refused.value.problems
    assert problem.path == "properties[a].pattern"
    assert problem.message.startswith('Invalid value: "(x": must be a valid regular expression')


@pytest.mark.parametrize("schema", (None, [], 1, {"type": 5}, objects(a=3), {"type": "object", "properties": []}))
def test_malformed_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        compile_schema(schema)


SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["", "a", "b"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcdz"), inner, max_size=4)
)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        STRING,
        STRING | {"default": "d"},
        STRING | {"nullable": True},
        INTEGER | {"default": 1, "minimum": 0},
        {"x-kubernetes-preserve-unknown-fields": True},
        {"x-kubernetes-int-or-string": True},
        {"type": "object", "additionalProperties": STRING},
        {"type": "object", "default": {}, "properties": {"a": STRING | {"default": "x"}}},
    ]
)
FIELDS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda fields: objects(**fields), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3))
    ),
    max_leaves=6,
)
SCHEMAS = st.builds(lambda fields: objects(**fields), st.dictionaries(st.sampled_from("abcd"), FIELDS, max_size=4))


@given(SCHEMAS, st.dictionaries(st.sampled_from("abcdz"), VALUES, max_size=5))
def test_passes_are_idempotent_and_change_nothing_they_are_given(raw: dict[str, Any], obj: dict[str, Any]) -> None:
    schema = compile_schema(raw)
    before = copy.deepcopy(obj)
    pruned, _ = schema.prune(obj)
    assert schema.prune(pruned) == (pruned, [])
    filled = schema.default(pruned)
    assert schema.default(filled) == filled
    assert schema.prune(filled) == (filled, []), "defaults survive pruning"
    problems = schema.validate(filled)
    assert all(isinstance(problem, FieldError) and problem.path for problem in problems)
    assert schema.validate(filled, filled) == [], "nothing changed, nothing to say"
    assert obj == before


KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "required",
        "enum",
        "allOf",
        "not",
        "default",
        "pattern",
        "minimum",
        "maxLength",
        "additionalProperties",
        "nullable",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "$ref",
        "x-kubernetes-validations",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
        "format",
    ]
)
JUNK = st.recursive(
    SCALARS | st.sampled_from(["object", "array", "string", "map", "set"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=4),
)


@given(st.dictionaries(KEYWORDS, JUNK, max_size=6))
def test_junk_is_refused_and_never_crashes(junk: dict[str, Any]) -> None:
    try:
        schema = compile_schema({"type": "object", "properties": {"a": junk}})
    except SchemaError as error:
        refused = error
    else:
        assert isinstance(schema.validate({"a": {"a": 1}}), list)
        return
    assert refused.problems
