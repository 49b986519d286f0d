"""Rules in CEL: results, errors, messages, transitions, and what they see of an object."""

from typing import Any

import pytest

from kubetwin.apiserver.schema import SchemaError, compile_schema

STRING = {"type": "string"}
INTEGER = {"type": "integer"}


def ruled(schema: dict[str, Any], rule: str, **more: Any) -> dict[str, Any]:
    return {**schema, "x-kubernetes-validations": [{"rule": rule, **more}]}


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def lines(schema: dict[str, Any], obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return [str(problem) for problem in compile_schema(schema).validate(obj, old)]


def test_a_false_rule_of_an_object_shows_its_message_and_field() -> None:
    schema = objects(s=ruled(objects(a=INTEGER, b=INTEGER), "self.a <= self.b", message="a over b", fieldPath=".a"))
    assert lines(schema, {"s": {"a": 2, "b": 1}}) == ["s.a: Invalid value: a over b"]
    assert lines(schema, {"s": {"a": 1, "b": 1}}) == []


def test_a_false_rule_of_the_root_has_no_path() -> None:
    schema = ruled(objects(a=STRING), "self.metadata.name == self.a")
    assert lines(schema, {"a": "x", "metadata": {"name": "y"}}) == [
        "<nil>: Invalid value: failed rule: self.metadata.name == self.a"
    ]


def test_a_rule_that_fails_to_evaluate_is_an_error_that_names_it() -> None:
    schema = objects(s=ruled(objects(a=INTEGER, b=INTEGER), "self.a <= self.b", message="a over b"))
    assert lines(schema, {"s": {"a": 2}}) == ['s: Invalid value: "object": no such key: b evaluating rule: a over b']
    assert lines(objects(a=ruled(STRING, "double(self) > 1.0")), {"a": "x"}) == [
        (
            'a: Invalid value: "string": type conversion error from '
            "'string' to 'double' evaluating rule: double(self) > 1.0"
        )
    ]


@pytest.mark.parametrize(
    ("more", "line"),
    (
        ({"messageExpression": "'bad ' + self"}, 'a: Invalid value: "x": bad x'),
        ({"messageExpression": "self[0]", "message": "plain"}, 'a: Invalid value: "x": plain'),
        ({"reason": "FieldValueForbidden", "message": "no"}, "a: Forbidden: no"),
        ({"reason": "FieldValueRequired", "message": "do"}, "a: Required value: do"),
        ({"reason": "FieldValueDuplicate", "message": "two"}, 'a: Duplicate value: "x"'),
        ({}, "a: Invalid value: \"x\": failed rule: self != 'x'"),
    ),
)
def test_messages_and_reasons(more: dict[str, str], line: str) -> None:
    assert lines(objects(a=ruled(STRING, "self != 'x'", **more)), {"a": "x"}) == [line]


def test_transition_rules_need_an_old_value() -> None:
    schema = objects(a=ruled(STRING, "self == oldSelf", message="immutable"))
    assert lines(schema, {"a": "x"}) == []
    assert lines(schema, {"a": "x"}, {}) == []
    assert lines(schema, {"a": "y"}, {"a": "x"}) == ['a: Invalid value: "y": immutable']


def test_transition_rules_follow_items_by_key() -> None:
    item = {**objects(name=STRING, v=ruled(STRING, "self == oldSelf", message="immutable")), "required": ["name"]}
    keyed = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item}
    old = {"a": [{"name": "1", "v": "a"}, {"name": "2", "v": "b"}]}
    new = {"a": [{"name": "2", "v": "b"}, {"name": "1", "v": "c"}, {"name": "3", "v": "z"}]}
    assert lines(objects(a=keyed), new, old) == ['a[1].v: Invalid value: "c": immutable']


def test_optional_old_self_runs_on_creation_too() -> None:
    rule = "oldSelf.hasValue() || self == 'init'"
    schema = objects(a=ruled(STRING, rule, message="starts with init", optionalOldSelf=True))
    assert lines(schema, {"a": "x"}) == ['a: Invalid value: "x": starts with init']
    assert lines(schema, {"a": "init"}) == []
    assert lines(schema, {"a": "x"}, {"a": "init"}) == []


def test_old_self_in_a_text_is_no_transition() -> None:
    assert lines(objects(a=ruled(STRING, "self != 'oldSelf'", message="no")), {"a": "oldSelf"}) == [
        'a: Invalid value: "oldSelf": no'
    ]


def test_unchanged_values_are_not_judged_again() -> None:
    schema = objects(a=ruled(STRING, "self != 'x'", message="no"), b=STRING)
    assert lines(schema, {"a": "x", "b": "new"}, {"a": "x", "b": "old"}) == []


def test_rules_see_declared_fields_by_their_escaped_names() -> None:
    fields = objects(**{"a-b": INTEGER, "namespace": INTEGER, "x.y": INTEGER, "q__r": INTEGER, "n": {"type": "number"}})
    rule = (
        "self.a__dash__b + self.__namespace__ + self.x__dot__y + self.q__underscores__r == 10 "
        "&& self.n / 2.0 == 1.5 && !has(self.hidden)"
    )
    obj = {"a-b": 1, "namespace": 2, "x.y": 3, "q__r": 4, "n": 3, "hidden": 1}
    free = {**fields, "x-kubernetes-preserve-unknown-fields": True}
    assert lines(objects(s=ruled(free, rule, message="no")), {"s": obj}) == []


@pytest.mark.parametrize(
    "rule",
    (
        "has(self.l) && self.l.all(x, x.size() > 0) && self.l.exists(x, x == 'b') && self.l.exists_one(x, x == 'a')",
        "self.l.map(x, x + '!') == ['a!', 'b!'] && self.l.filter(x, x > 'a').size() == 1",
        "self.s.matches('^h[a-z]+$') && self.s.startsWith('h') && self.s.endsWith('o') && self.s.contains('ll')",
        "int(self.d) == 12 && double(self.d) < 12.5 && string(self.i) == '7' && self.i < 7.5",
        "self.s.split('l').join('-') == 'he--o' && self.s.upperAscii() == 'HELLO' && self.s.substring(1, 2) == 'e'",
        "self.l.isSorted() && self.l.indexOf('b') == 1 && self.l.lastIndexOf('z') == -1 && self.l.max() == 'b'",
        "self.s.find('l+') == 'll' && self.s.findAll('l') == ['l', 'l'] && [1, 2].sum() == 3",
        "sets.contains(self.l, ['a']) && sets.intersects(self.l, ['b', 'z']) && !sets.equivalent(self.l, ['a'])",
        "self.?missing.orValue('x') == 'x' && cel.bind(n, self.i * 2, n == 14) && 'k' in self.m && self.m['k'] == 1",
        "size('é') == 1 && type(self.i) == int && duration('90s') > duration('1m')",
    ),
)
def test_what_rules_in_use_call(rule: str) -> None:
    counts = {"type": "object", "additionalProperties": INTEGER}
    texts = {"type": "array", "items": STRING}
    schema = objects(a=ruled(objects(l=texts, s=STRING, d=STRING, i=INTEGER, m=counts), rule, message="no"))
    assert lines(schema, {"a": {"l": ["a", "b"], "s": "hello", "d": "12", "i": 7, "m": {"k": 1}}}) == []


@pytest.mark.parametrize("rule", ("self.", "nosuch(self)", "1 + 1", "self == other"))
def test_rules_that_do_not_compile(rule: str) -> None:
    with pytest.raises(SchemaError) as refused:
        compile_schema(objects(a=ruled(STRING, rule)))
    (problem,) = refused.value.problems
    assert problem.path == "properties[a].x-kubernetes-validations[0].rule"
    assert "compilation failed: " in problem.message


def test_rules_wait_until_the_fields_they_read_have_their_types() -> None:
    schema = ruled(objects(a=INTEGER), "self.a > 1", message="small")
    assert lines(schema, {"a": "x"}) == ['a: Invalid value: "string": a in body must be of type integer: "string"']
