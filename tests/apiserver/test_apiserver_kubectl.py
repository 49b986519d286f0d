"""A real kubectl against the server, end to end."""

import asyncio
import json
import re

from tests.apiserver.conftest import DEADLINE_S, Client, Kubectl, widget, widget_definition


async def test_apply_get_and_delete_a_custom_resource(kubectl: Kubectl) -> None:
    assert "no matches for kind" in await kubectl.fails("apply", "-f", "-", stdin=widget("w1"))
    assert "created" in await kubectl("apply", "-f", "-", stdin=widget_definition())
    assert "unchanged" in await kubectl("apply", "-f", "-", stdin=widget_definition())
    assert "created" in await kubectl("apply", "-f", "-", stdin=widget("w1", size=3, labels={"a": "b"}))
    assert "unchanged" in await kubectl("apply", "-f", "-", stdin=widget("w1", size=3, labels={"a": "b"}))
    # The three-way merge of apply: a label that is gone from the manifest goes from the object.
    assert "configured" in await kubectl("apply", "-f", "-", stdin=widget("w1", size=4))
    stored = json.loads(await kubectl("get", "widget", "w1", "-o", "json"))
    assert stored["spec"] == {"size": 4, "color": "red"}
    assert "labels" not in stored["metadata"]
    assert stored["metadata"]["generation"] == 2
    assert "size: 4" in await kubectl("get", "wg", "w1", "-o", "yaml")
    assert 'widget.test.kubetwin.io "w1" deleted' in await kubectl("delete", "wg", "w1")
    assert '"w1" not found' in await kubectl.fails("get", "wg", "w1")
    assert "deleted" in await kubectl("delete", "crd", "widgets.test.kubetwin.io")


async def test_columns_short_names_and_categories(kubectl: Kubectl, client: Client) -> None:
    await client.define_widgets()
    await kubectl("apply", "-f", "-", stdin=widget("w1", size=7))
    plain = await kubectl("get", "wg")
    assert re.fullmatch(r"NAME +SIZE +AGE\nw1 +7 +\d+s\n", plain)
    assert re.fullmatch(r"NAME +SIZE +COLOR +AGE\nw1 +7 +red +\d+s\n", await kubectl("get", "wg", "-o", "wide"))
    assert "w1" in await kubectl("get", "kubetwin")
    assert "widgets" in await kubectl("api-resources", "--categories=kubetwin")
    assert re.search(r"^widgets +wg +test.kubetwin.io/v1 +true +Widget", await kubectl("api-resources"), re.MULTILINE)
    await kubectl("label", "wg", "w1", "place=hall")
    assert "w1" in await kubectl("get", "wg", "-A", "-l", "place in (hall, yard)")
    assert "No resources found" in await kubectl("get", "wg", "-l", "place=yard")


async def test_refusals_name_the_field(kubectl: Kubectl, client: Client) -> None:
    await client.define_widgets()
    text = await kubectl.fails("apply", "-f", "-", stdin=widget("w1", size=0))
    assert 'The Widget "w1" is invalid: spec.size: Invalid value: 0' in text
    unknown = widget("w1")
    unknown["spec"]["colour"] = "red"
    text = await kubectl.fails("apply", "-f", "-", stdin=unknown)
    assert 'strict decoding error: unknown field "spec.colour"' in text
    assert "created" in await kubectl("apply", "--validate=ignore", "-f", "-", stdin=unknown)
    patched = await kubectl("patch", "wg", "w1", "--type=merge", "-p", '{"spec":{"bar":1}}')
    assert 'Warning: unknown field "spec.bar"' in patched
    wrong = widget("w2")
    wrong["spec"]["color"] = "blue"
    text = await kubectl.fails("apply", "-f", "-", stdin=wrong)
    assert 'spec.color: Unsupported value: "blue": supported values: "red", "green"' in text
    assert 'namespaces "nowhere" not found' in await kubectl.fails("create", "cm", "x", "-n", "nowhere")


async def test_patches(kubectl: Kubectl, client: Client) -> None:
    await client.define_widgets()
    await kubectl("create", "-f", "-", stdin=widget("w1"))
    assert "patched" in await kubectl("patch", "wg", "w1", "--type=merge", "-p", '{"spec":{"size":5}}')
    assert "patched (no change)" in await kubectl("patch", "wg", "w1", "--type=merge", "-p", '{"spec":{"size":5}}')
    operations = '[{"op":"test","path":"/spec/size","value":5},{"op":"add","path":"/spec/notes","value":["a"]}]'
    await kubectl("patch", "wg", "w1", "--type=json", "-p", operations)
    assert await kubectl("get", "wg", "w1", "-o", "jsonpath={.spec}") == '{"color":"red","notes":["a"],"size":5}'
    text = await kubectl.fails("patch", "wg", "w1", "--type=json", "-p", '[{"op":"remove","path":"/spec/none"}]')
    assert "path does not exist" in text
    assert "patched" in await kubectl(
        "patch", "wg", "w1", "--subresource=status", "--type=merge", "-p", '{"status":{"ok":true},"spec":{"size":9}}'
    )
    assert await kubectl("get", "wg", "w1", "-o", "jsonpath={.spec.size} {.status}") == '5 {"ok":true}'


async def test_watch_prints_changes_as_they_happen(kubectl: Kubectl, client: Client) -> None:
    await client.define_widgets()
    await kubectl("create", "-f", "-", stdin=widget("w1"))
    process = await kubectl.start("get", "wg", "-w")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert (await process.stdout.readline()).split() == [b"NAME", b"SIZE", b"AGE"]
            assert (await process.stdout.readline()).split()[:2] == [b"w1", b"1"]
            await kubectl("patch", "wg", "w1", "--type=merge", "-p", '{"spec":{"size":8}}')
            assert (await process.stdout.readline()).split()[:2] == [b"w1", b"8"]
    finally:
        process.kill()
        await process.communicate()


async def test_explain_describe_wait_and_diff(kubectl: Kubectl, client: Client) -> None:
    await client.define_widgets()
    explained = await kubectl("explain", "widget.spec")
    assert "What the widget should be." in explained
    assert re.search(r"size\s+<integer> -required-\s+How big it is", explained)
    await kubectl("wait", "--for=condition=established", "crd/widgets.test.kubetwin.io", "--timeout=5s")
    await kubectl("create", "-f", "-", stdin=widget("w1"))
    assert re.search(r"Events: +<none>", await kubectl("describe", "wg", "w1"))
    assert "+  size: 2" in await kubectl.fails("diff", "-f", "-", stdin=widget("w1", size=2))
    assert await kubectl("get", "wg", "w1", "-o", "jsonpath={.spec.size}") == "1"


async def test_built_in_kinds_and_typed_commands(kubectl: Kubectl) -> None:
    # These commands of kubectl send protobuf.
    await kubectl("create", "configmap", "settings", "--from-literal=a=1")
    await kubectl("create", "secret", "generic", "key", "--from-literal=word=open")
    await kubectl("create", "namespace", "yard")
    await kubectl("create", "serviceaccount", "robot", "-n", "yard")
    assert await kubectl("get", "secret", "key", "-o", "jsonpath={.data.word}") == "b3Blbg=="
    assert re.search(r"settings +1 +\d+s", await kubectl("get", "cm"))
    assert re.search(r"key +Opaque +1 +\d+s", await kubectl("get", "secret"))
    assert await kubectl("auth", "can-i", "delete", "pods") == "yes\n"
    assert "kubetwin-admin" in await kubectl("auth", "whoami")
    assert "Server Version: v1." in await kubectl("version")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}}
    await kubectl("create", "-f", "-", stdin=node)
    ready = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    await kubectl("patch", "node", "edge-1", "--subresource=status", "-p", ready)
    assert re.search(r"edge-1 +Ready +<none> +\d+s", await kubectl("get", "nodes"))
    # Strategic merge: the second condition is merged by its type, not put in place of the first.
    await kubectl("patch", "node", "edge-1", "--subresource=status", "-p", ready.replace("Ready", "Heat"))
    conditions = await kubectl("get", "node", "edge-1", "-o", "jsonpath={.status.conditions[*].type}")
    assert sorted(conditions.split()) == ["Heat", "Ready"]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1", "b": "2"}}
    await kubectl("apply", "-f", "-", stdin=config)
    await kubectl("apply", "-f", "-", stdin={**config, "data": {"a": "3"}})
    assert await kubectl("get", "cm", "applied", "-o", "jsonpath={.data}") == '{"a":"3"}'


async def test_deleting_a_namespace_removes_its_content(kubectl: Kubectl) -> None:
    await kubectl("create", "namespace", "yard")
    await kubectl("create", "configmap", "settings", "-n", "yard")
    await kubectl("delete", "namespace", "yard")
    assert 'namespaces "yard" not found' in await kubectl.fails("get", "namespace", "yard")
    await kubectl("create", "namespace", "yard")
    assert "No resources found" in await kubectl("get", "cm", "-n", "yard")
    assert "this namespace may not be deleted" in await kubectl.fails("delete", "namespace", "default")


async def test_a_bad_definition_is_refused_with_the_path_of_the_fault(kubectl: Kubectl) -> None:
    definition = widget_definition()
    properties = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    del properties["spec"]["type"]
    text = await kubectl.fails("apply", "-f", "-", stdin=definition)
    assert "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value" in text
    definition = widget_definition()
    definition["spec"]["names"]["plural"] = "gadgets"
    assert 'must be spec.names.plural+"."+spec.group' in await kubectl.fails("apply", "-f", "-", stdin=definition)
