"""Verbs over plain HTTP: what client libraries rely on and kubectl does not show."""

import asyncio
import stat
from typing import Any

import pytest

from kubetwin.apiserver import ApiServer
from tests.apiserver.conftest import MERGE, WIDGETS, Client, widget

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"a": "1"}}


def owned_by(owner: dict[str, Any], **more: Any) -> dict[str, Any]:
    meta = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {"ownerReferences": [{**reference, **more}]}


async def test_update_with_an_old_version_conflicts(client: Client) -> None:
    await client.define_widgets()
    first = await client.ok("POST", WIDGETS, widget("w1"))
    first["spec"]["size"] = 2
    second = await client.ok("PUT", f"{WIDGETS}/w1", first)
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    code, status = await client.call("PUT", f"{WIDGETS}/w1", first)
    assert (code, status["reason"]) == (409, "Conflict")
    assert status["message"] == (
        'Operation cannot be fulfilled on widgets.test.kubetwin.io "w1": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"size": 3}}
    assert (await client.call("PATCH", f"{WIDGETS}/w1", stale, media=MERGE))[0] == 409
    code, status = await client.call("PUT", f"{WIDGETS}/w1", widget("w1"))
    assert code == 422
    assert status["details"]["causes"][0]["field"] == "metadata.resourceVersion"


async def test_a_write_without_effect_moves_no_version(client: Client) -> None:
    await client.define_widgets()
    first = await client.ok("POST", WIDGETS, widget("w1"))
    assert await client.ok("PUT", f"{WIDGETS}/w1", first) == first
    assert await client.ok("PATCH", f"{WIDGETS}/w1", {"spec": {"size": 1}}, media=MERGE) == first


async def test_one_and_true_are_not_the_same(client: Client) -> None:
    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("w1"))
    for value in (1, True):
        await client.ok("PATCH", f"{WIDGETS}/w1/status", {"status": {"value": value}}, media=MERGE)
        assert (await client.ok("GET", f"{WIDGETS}/w1"))["status"]["value"] is value


async def test_concurrent_patches_all_take_effect(client: Client) -> None:
    await client.ok("POST", CONFIG_MAPS, config_map("counter"))
    patches = [{"data": {f"k{number}": str(number)}} for number in range(50)]
    await asyncio.gather(*(client.ok("PATCH", f"{CONFIG_MAPS}/counter", patch, media=MERGE) for patch in patches))
    stored = await client.ok("GET", f"{CONFIG_MAPS}/counter")
    assert stored["data"] == {"a": "1", **{f"k{number}": str(number) for number in range(50)}}


async def test_status_is_a_subresource(client: Client) -> None:
    await client.define_widgets()
    created = await client.ok("POST", WIDGETS, {**widget("w1"), "status": {"early": True}})
    assert "status" not in created
    patch = {"status": {"ok": True}, "spec": {"size": 9}, "metadata": {"labels": {"a": "b"}}}
    after = await client.ok("PATCH", f"{WIDGETS}/w1/status", patch, media=MERGE)
    assert (after["status"], after["spec"]["size"], after["metadata"]["generation"]) == ({"ok": True}, 1, 1)
    assert "labels" not in after["metadata"]
    after = await client.ok("PATCH", f"{WIDGETS}/w1", {"status": {"ok": False}, "spec": {"size": 2}}, media=MERGE)
    assert (after["status"], after["spec"]["size"], after["metadata"]["generation"]) == ({"ok": True}, 2, 2)


async def test_dry_run_stores_nothing(client: Client) -> None:
    answer = await client.ok("POST", CONFIG_MAPS, config_map("x"), dryRun="All")
    assert answer["metadata"]["uid"]
    assert (await client.call("GET", f"{CONFIG_MAPS}/x"))[0] == 404


async def test_generate_name(client: Client) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "run-"}}
    names = {(await client.ok("POST", CONFIG_MAPS, body))["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("run-") and len(name) == 9 for name in names)


async def test_owned_objects_go_with_their_owner(client: Client) -> None:
    owner = await client.ok("POST", CONFIG_MAPS, config_map("owner"))
    other = await client.ok("POST", CONFIG_MAPS, config_map("other"))
    middle = await client.ok("POST", CONFIG_MAPS, config_map("middle", **owned_by(owner)))
    await client.ok("POST", CONFIG_MAPS, config_map("leaf", **owned_by(middle)))
    both = owned_by(owner)["ownerReferences"] + owned_by(other)["ownerReferences"]
    await client.ok("POST", CONFIG_MAPS, config_map("shared", ownerReferences=both))
    watch = await client.watch(CONFIG_MAPS, fieldSelector="metadata.name=shared")
    await watch.next()
    await client.ok("DELETE", f"{CONFIG_MAPS}/owner")
    await client.gone(f"{CONFIG_MAPS}/leaf")
    await client.gone(f"{CONFIG_MAPS}/middle")
    event = await watch.next()
    assert [reference["name"] for reference in event["object"]["metadata"]["ownerReferences"]] == ["other"]
    watch.close()


async def test_an_object_whose_owner_never_was_is_collected(client: Client) -> None:
    ghost = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ghost", "uid": "no-such-uid"}}
    await client.ok("POST", CONFIG_MAPS, config_map("orphan", **owned_by(ghost)))
    await client.gone(f"{CONFIG_MAPS}/orphan")


async def test_foreground_deletion_waits_for_dependents(client: Client) -> None:
    owner = await client.ok("POST", CONFIG_MAPS, config_map("owner"))
    held = config_map("held", **owned_by(owner, blockOwnerDeletion=True), finalizers=["test.kubetwin.io/hold"])
    await client.ok("POST", CONFIG_MAPS, held)
    watch = await client.watch(CONFIG_MAPS, fieldSelector="metadata.name=held")
    await watch.next()
    await client.ok("DELETE", f"{CONFIG_MAPS}/owner", {"propagationPolicy": "Foreground"})
    marked = await watch.next()
    assert marked["object"]["metadata"]["deletionTimestamp"]
    watch.close()
    assert (await client.call("GET", f"{CONFIG_MAPS}/owner"))[0] == 200
    await client.ok("PATCH", f"{CONFIG_MAPS}/held", {"metadata": {"finalizers": None}}, media=MERGE)
    await client.gone(f"{CONFIG_MAPS}/held")
    await client.gone(f"{CONFIG_MAPS}/owner")


async def test_orphaning_keeps_dependents(client: Client) -> None:
    owner = await client.ok("POST", CONFIG_MAPS, config_map("owner"))
    await client.ok("POST", CONFIG_MAPS, config_map("kept", **owned_by(owner)))
    await client.ok("DELETE", f"{CONFIG_MAPS}/owner", {"propagationPolicy": "Orphan"})
    await client.gone(f"{CONFIG_MAPS}/owner")
    assert "ownerReferences" not in (await client.ok("GET", f"{CONFIG_MAPS}/kept"))["metadata"]


async def test_delete_preconditions_and_collections(client: Client) -> None:
    await client.ok("POST", CONFIG_MAPS, config_map("a", labels={"x": "1"}))
    await client.ok("POST", CONFIG_MAPS, config_map("b", labels={"x": "2"}))
    code, _ = await client.call("DELETE", f"{CONFIG_MAPS}/a", {"preconditions": {"uid": "other"}})
    assert code == 409
    answer = await client.ok("DELETE", CONFIG_MAPS, labelSelector="x=1")
    assert [item["metadata"]["name"] for item in answer["items"]] == ["a"]
    listed = await client.ok("GET", CONFIG_MAPS)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["b"]


async def test_pages_of_a_list_are_one_snapshot(client: Client) -> None:
    for number in range(5):
        await client.ok("POST", CONFIG_MAPS, config_map(f"c{number}"))
    page = await client.ok("GET", CONFIG_MAPS, limit="2")
    assert page["metadata"]["remainingItemCount"] == 3
    version = page["metadata"]["resourceVersion"]
    names = [item["metadata"]["name"] for item in page["items"]]
    await client.ok("DELETE", f"{CONFIG_MAPS}/c3")
    await client.ok("POST", CONFIG_MAPS, config_map("c2b"))
    while page["metadata"].get("continue"):
        page = await client.ok("GET", CONFIG_MAPS, **{"limit": "2", "continue": page["metadata"]["continue"]})
        assert page["metadata"]["resourceVersion"] == version
        names += [item["metadata"]["name"] for item in page["items"]]
    assert names == ["c0", "c1", "c2", "c3", "c4"]
    exact = await client.ok("GET", CONFIG_MAPS, resourceVersion=version, resourceVersionMatch="Exact")
    assert [item["metadata"]["name"] for item in exact["items"]] == names
    code, status = await client.call("GET", CONFIG_MAPS, resourceVersion="999999")
    assert (code, status["reason"]) == (504, "Timeout")


@pytest.mark.parametrize(
    ("method", "path", "body", "media", "code", "reason"),
    (
        ("POST", CONFIG_MAPS, b"{", "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"[1]", "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"[" * 200_000, "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"a: [", "application/yaml", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"a: &x [1]\nb: *x", "application/yaml", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"\xff\xfe", "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"? [a]\n: 1", "application/yaml", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"a: !!binary aGk=", "application/yaml", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"1" * 10_000, "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b'{"a": "\\ud800"}', "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b'{"a":' * 900 + b"1" + b"}" * 900, "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, b"{}", "text/plain", 415, "UnsupportedMediaType"),
        ("POST", CONFIG_MAPS, b"k8s\x00\x0a\xff", "application/vnd.kubernetes.protobuf", 415, "UnsupportedMediaType"),
        ("POST", CONFIG_MAPS, b" " * (4 << 20), "application/json", 413, "RequestEntityTooLarge"),
        ("POST", CONFIG_MAPS, config_map("x", labels={"a": 1}), "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, config_map("X_y"), "application/json", 422, "Invalid"),
        ("POST", CONFIG_MAPS, {**config_map("x"), "kind": "Pod"}, "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, {**config_map("x"), "data": {"a": 1}}, "application/json", 422, "Invalid"),
        ("POST", CONFIG_MAPS, config_map("x", namespace="kubeedge"), "application/json", 400, "BadRequest"),
        ("POST", CONFIG_MAPS, config_map("x", resourceVersion="5"), "application/json", 400, "BadRequest"),
        ("PATCH", f"{CONFIG_MAPS}/none", {}, MERGE, 404, "NotFound"),
        ("PATCH", f"{CONFIG_MAPS}/none", {}, "application/apply-patch+yaml", 415, "UnsupportedMediaType"),
        ("PUT", CONFIG_MAPS, config_map("x"), "application/json", 405, "MethodNotAllowed"),
        ("GET", "/api/v1/nothing", None, "", 404, "NotFound"),
        ("GET", "/apis/none.example.com/v1", None, "", 404, "NotFound"),
        ("GET", f"{CONFIG_MAPS}?labelSelector=a%20b", None, "", 400, "BadRequest"),
        ("GET", f"{CONFIG_MAPS}?fieldSelector=data.a=1", None, "", 400, "BadRequest"),
        ("GET", f"{CONFIG_MAPS}?continue=%21", None, "", 400, "BadRequest"),
        ("GET", f"{CONFIG_MAPS}?limit=-1", None, "", 400, "BadRequest"),
        ("DELETE", "/api/v1/namespaces/kube-system", None, "", 403, "Forbidden"),
    ),
)
async def test_bad_requests_are_answered_with_a_status(
    client: Client, method: str, path: str, body: Any, media: str, code: int, reason: str
) -> None:
    given, status = await client.call(method, path, body, media=media)
    assert (given, status["kind"], status["code"], status["reason"]) == (code, "Status", code, reason)
    assert status["message"]
    assert (await client.call("GET", CONFIG_MAPS))[0] == 200


async def test_an_object_does_not_grow_past_the_limit_by_patches(client: Client) -> None:
    await client.ok("POST", CONFIG_MAPS, config_map("x"))
    half = "x" * (2 << 20)
    await client.ok("PATCH", f"{CONFIG_MAPS}/x", {"data": {"a": half}}, media=MERGE)
    code, status = await client.call("PATCH", f"{CONFIG_MAPS}/x", {"data": {"b": half}}, media=MERGE)
    assert (code, status["reason"]) == (413, "RequestEntityTooLarge")
    assert list((await client.ok("GET", f"{CONFIG_MAPS}/x"))["data"]) == ["a"]


async def test_yaml_bodies(client: Client) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {day: '2026-01-01', on: \"yes\"}\n"
    stored = await client.ok("POST", CONFIG_MAPS, text, media="application/yaml")
    assert stored["data"] == {"day": "2026-01-01", "true": "yes"}  # on is a boolean in YAML 1.1, and a key is text


async def test_only_the_token_opens(server: ApiServer, client: Client) -> None:
    for token in ("", "Bearer ", "Bearer wrong", f"Basic {server.token}"):
        headers = {"Authorization": token}
        async with client.session.get(f"{server.url}/api/v1/namespaces", headers=headers) as response:
            assert response.status == 401
            assert (await response.json())["reason"] == "Unauthorized"
        async with client.session.get(f"{server.url}/readyz", headers=headers) as response:
            assert (response.status, await response.text()) == (200, "ok")
    for name in ("token", "kubeconfig", "objects.db", "pki/ca.key", "pki/server.key"):
        assert stat.S_IMODE((server.data_dir / name).stat().st_mode) == 0o600, name


async def test_names_that_are_taken_leave_a_definition_unserved(client: Client) -> None:
    await client.define_widgets()
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    rival = (await client.ok("GET", f"{definitions}/widgets.test.kubetwin.io"))["spec"]
    rival = {**rival, "names": {"plural": "gadgets", "kind": "Gadget", "shortNames": ["wg"]}}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.test.kubetwin.io"},
        "spec": rival,
    }
    created = await client.ok("POST", definitions, body)
    state = {condition["type"]: condition["status"] for condition in created["status"]["conditions"]}
    assert state == {"NamesAccepted": "False", "Established": "False"}
    gadgets = "/apis/test.kubetwin.io/v1/namespaces/default/gadgets"
    assert (await client.call("GET", gadgets))[0] == 404
    watch = await client.watch(definitions, fieldSelector="metadata.name=gadgets.test.kubetwin.io")
    await watch.next()
    await client.ok("DELETE", f"{definitions}/widgets.test.kubetwin.io")
    await watch.next()
    watch.close()
    assert (await client.call("GET", gadgets))[0] == 200


async def test_metrics_count_requests_by_verb_and_resource(client: Client) -> None:
    await client.ok("POST", CONFIG_MAPS, config_map("x"))
    async with client.session.get(f"{client.server.url}/metrics") as response:
        text = await response.text()
    assert 'apiserver_request_total{verb="create",group="",resource="configmaps",code="201"} 1' in text
    assert 'apiserver_storage_objects{resource="configmaps"} 1' in text
