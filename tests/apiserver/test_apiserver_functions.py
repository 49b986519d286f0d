"""The plain functions: patches, selectors, JSONPath, durations, protobuf, and the store when the disk refuses."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetwin.apiserver.columns import age_of, human_duration
from kubetwin.apiserver.errors import ApiError
from kubetwin.apiserver.items import Item, encode, make_item
from kubetwin.apiserver.jsonpath import compile_path
from kubetwin.apiserver.kinds import version_priority
from kubetwin.apiserver.patches import PatchError, json_patch, merge_patch, strategic_merge
from kubetwin.apiserver.protobuf import MAGIC, ProtobufError, read_protobuf
from kubetwin.apiserver.selectors import parse_fields, parse_labels
from kubetwin.apiserver.store import Store

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc/~", max_size=2), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    (  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ),
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    (  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["a", "c"]}, [{"op": "add", "path": "/foo/1", "value": "b"}], {"foo": ["a", "b", "c"]}),
        ({"foo": ["a"]}, [{"op": "add", "path": "/foo/-", "value": ["b"]}], {"foo": ["a", ["b"]]}),
        ({"foo": ["a", "b"]}, [{"op": "remove", "path": "/foo/0"}], {"foo": ["b"]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": {"x": 1}, "b": {}}, [{"op": "move", "from": "/a/x", "path": "/b/y"}], {"a": {}, "b": {"y": 1}}),
        ({"a": [1, 2]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1, 2], "b": [1, 2]}),
        ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
        ({"a": 1}, [{"op": "add", "path": "", "value": {"b": 2}}], {"b": 2}),
    ),
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    assert json_patch(target, operations) == result


@pytest.mark.parametrize(
    "operation",
    (
        {"op": "remove", "path": "/none"},
        {"op": "replace", "path": "/none", "value": 1},
        {"op": "add", "path": "/none/deep", "value": 1},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/list/01", "value": 1},
        {"op": "add", "path": "/a"},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "move", "from": "/map", "path": "/map/inside"},
        {"op": "jump", "path": "/a"},
        {"op": "add", "path": "a", "value": 1},
        {"op": "remove", "path": ""},
        {},
    ),
)
def test_json_patch_refuses(operation: Any) -> None:
    with pytest.raises(PatchError):
        json_patch({"a": 1, "list": [1], "map": {}}, [operation])


def test_copies_in_a_json_patch_are_bounded() -> None:
    double = {"op": "copy", "from": "/a", "path": "/a/-"}
    with pytest.raises(PatchError, match="operation"):
        json_patch({"a": ["x" * 1000]}, [double] * 30)  # would be 2^30 times as much


def test_a_test_tells_one_from_true() -> None:
    with pytest.raises(PatchError):
        json_patch({"a": True}, [{"op": "test", "path": "/a", "value": 1}])


@given(TREES, TREES)
def test_a_merge_patch_applied_twice_changes_nothing_more(target: Any, patch: Any) -> None:
    once = merge_patch(copy.deepcopy(target), copy.deepcopy(patch))
    assert merge_patch(copy.deepcopy(once), copy.deepcopy(patch)) == once


@given(
    TREES, st.lists(st.dictionaries(st.sampled_from(["op", "path", "from", "value"]), TREES, max_size=4), max_size=3)
)
def test_json_patch_fails_only_as_it_says(target: Any, operations: Any) -> None:
    before = copy.deepcopy(target)
    try:
        result = json_patch(target, operations)
    except PatchError:
        return  # any other exception fails the test
    if not operations:
        assert result == before


def test_strategic_merge_knows_keyed_lists_and_directives() -> None:
    pod = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "args": ["x"]}}
    patch: dict[str, Any] = {
        "spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}], "args": ["y"]}
    }
    assert strategic_merge(pod, patch) == {"spec": {"containers": [{"name": "b", "image": "2"}], "args": ["y"]}}
    meta = {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}
    patch = {
        "$deleteFromPrimitiveList/finalizers": ["a"],
        "finalizers": ["c"],
        "labels": {"$patch": "replace", "z": "3"},
    }
    assert strategic_merge(meta, patch) == {"finalizers": ["b", "c"], "labels": {"z": "3"}}
    with pytest.raises(PatchError, match="merge key"):
        strategic_merge(pod, {"spec": {"containers": [{"image": "x"}]}})


def item(**labels: str) -> Item:
    meta = {"name": "n", "namespace": "ns", "uid": "u", "labels": labels}
    return make_item("things", ("ns", "n"), 1, encode({"metadata": meta, "spec": {"node": "edge", "on": True}}))


@pytest.mark.parametrize(
    ("selector", "matches"),
    (
        ("", True),
        ("a=1", True),
        ("a==1,b!=3", True),
        ("a!=1", False),
        ("c!=1", True),
        ("a", True),
        ("!a", False),
        ("!c", True),
        ("a in (1, 2),b notin (1)", True),
        ("a in (2)", False),
        ("c notin (1)", True),
        ("a>0,a<2", True),
        ("a>1", False),
        ("kubetwin.io/x=", True),
    ),
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert parse_labels(selector)(item(**{"a": "1", "b": "2", "kubetwin.io/x": ""})) is matches


@pytest.mark.parametrize("selector", ("a b", "=1", "a in 1", "a=1=2", "(a)", "a in (1"))
def test_label_selectors_that_make_no_sense(selector: str) -> None:
    with pytest.raises(ApiError, match="selector"):
        parse_labels(selector)


def test_field_selectors() -> None:
    fields = {"spec.node", "spec.on"}
    assert parse_fields("metadata.name=n,metadata.namespace!=other,spec.node==edge,spec.on=true", fields)(item())
    assert not parse_fields("spec.node!=edge", fields)(item())
    with pytest.raises(ApiError, match="field label not supported"):
        parse_fields("spec.color=red", fields)


def test_json_path() -> None:
    tree = {"a": {"b.c": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "d-e": None}}
    assert compile_path(".a['b.c'][0].v")(tree) == [1]
    assert compile_path('.a.b\\.c[?(@.k=="y")].v')(tree) == [2]
    assert compile_path("{.a['b.c'][*].v}")(tree) == [1, 2]
    assert compile_path(".a.d-e")(tree) == []
    assert compile_path(".a.none.deeper[3]")(tree) == []
    with pytest.raises(ValueError, match="not understood"):
        compile_path(".a[")


def test_durations_read_as_kubectl_prints_them() -> None:
    minute, hour, day = 60, 3600, 86400
    table = {0: "0s", 119: "119s", 2 * minute: "2m", 2 * minute + 5: "2m5s", 10 * minute + 5: "10m", 3 * hour: "3h"}
    table |= {3 * hour + 60: "3h1m", 9 * hour: "9h", 47 * hour: "47h", 2 * day: "2d", 50 * hour: "2d2h", 9 * day: "9d"}
    table |= {729 * day: "729d", 730 * day: "2y", 800 * day: "2y70d", 9 * 365 * day: "9y", -5: "<invalid>"}
    assert {seconds: human_duration(seconds) for seconds in table} == table
    assert age_of("yesterday") == age_of(None) == "<unknown>"


def test_versions_sort_by_maturity() -> None:
    names = ["v1alpha1", "v1beta1", "foo", "v2", "v1", "v1beta2"]
    assert sorted(names, key=version_priority) == ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]


@given(st.binary(max_size=200))
def test_protobuf_that_is_none_is_refused_as_such(body: bytes) -> None:
    config_map = MAGIC + b"\n\x0f\n\x02v1\x12\tConfigMap\x12" + bytes([len(body) & 0x7F]) + body
    for data in (body, MAGIC + body, config_map):
        try:
            assert isinstance(read_protobuf(data), dict)
        except (ProtobufError, UnicodeDecodeError):
            continue


async def test_a_full_disk_fails_the_write_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "objects.db")
    store.open()

    def thing(name: str, size: int) -> dict[str, Any]:
        return {"metadata": {"name": name, "uid": name}, "data": "x" * size}

    try:
        await store.put("things", ("", "a"), thing("a", 10))[1]
        (pages,) = store._storage._db.execute("PRAGMA page_count").fetchone()
        store._storage._db.execute(f"PRAGMA max_page_count={pages + 8}")
        failed = [store.put("things", ("", "b"), thing("b", 1 << 20)), store.put("things", ("", "a"), thing("a", 20))]
        outcomes = await asyncio.gather(*(done for _, done in failed), return_exceptions=True)
        assert isinstance(outcomes[0], ApiError)
        assert "full" in outcomes[0].message
        store._storage._db.execute("PRAGMA max_page_count=1000000")
        newest = store.newest("things", ("", "b"))
        assert newest is None
        stored, done = store.put("things", ("", "b"), thing("b", 30))
        await done
        assert store.get("things", ("", "b")) is stored
        assert store.version == stored.version
    finally:
        store.close()
    again = Store(tmp_path / "objects.db")
    again.open()
    try:
        assert again.version == stored.version
        assert again.get("things", ("", "b")) is not None
    finally:
        again.close()
