"""Watches: where they start, what they tell, how they end; and what a restart leaves of them."""

import asyncio
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from kubetwin.apiserver import ApiServer, StorageError, store, watches
from tests.apiserver.conftest import DEADLINE_S, MERGE, WIDGETS, Client, Kubectl, Watch, started, trusting, widget

WIDGETS_EVERYWHERE = "/apis/test.kubetwin.io/v1/widgets"
END = {"k8s.io/initial-events-end": "true"}


async def test_watch_from_a_list_misses_nothing(client: Client) -> None:
    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("a"))
    version = (await client.ok("GET", WIDGETS))["metadata"]["resourceVersion"]
    await client.ok("POST", WIDGETS, widget("b"))
    watch = await client.watch(WIDGETS, resourceVersion=version)
    await client.ok("PATCH", f"{WIDGETS}/a", {"spec": {"size": 2}}, media=MERGE)
    await client.ok("DELETE", f"{WIDGETS}/b")
    assert await watch.names(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    watch.close()


async def test_watch_without_version_tells_what_is_there(client: Client) -> None:
    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("a"))
    await client.ok("POST", WIDGETS, widget("b"))
    watch = await client.watch(WIDGETS_EVERYWHERE)
    assert await watch.names(2) == [("ADDED", "a"), ("ADDED", "b")]
    watch.close()


async def test_watches_that_start_amid_writes_tell_every_write_once_and_in_order(client: Client) -> None:
    await client.define_widgets()
    expected: dict[str, list[int]] = {}

    async def write(name: str) -> None:
        made = await client.ok("POST", WIDGETS, widget(name))
        expected[name] = [int(made["metadata"]["resourceVersion"])]
        for size in range(2, 12):
            made = await client.ok("PATCH", f"{WIDGETS}/{name}", {"spec": {"size": size}}, media=MERGE)
            expected[name].append(int(made["metadata"]["resourceVersion"]))

    async def follow(names: list[str]) -> None:
        """List, watch from there, and see what the writers were told."""
        order: list[int] = []
        listed = await client.ok("GET", WIDGETS)
        start = int(listed["metadata"]["resourceVersion"])
        seen = {one["metadata"]["name"]: one["spec"]["size"] for one in listed["items"]}
        watch = await client.watch(WIDGETS, resourceVersion=str(start))
        versions: dict[str, list[int]] = {name: [] for name in names}
        while any(seen.get(name) != 11 for name in names):
            shown = (await watch.next())["object"]
            name, version = shown["metadata"]["name"], int(shown["metadata"]["resourceVersion"])
            versions[name].append(version)
            order.append(version)
            seen[name] = shown["spec"]["size"]
        watch.close()
        assert order == sorted(set(order))
        await asyncio.gather(*writers)
        for name in names:
            assert versions[name] == [made for made in expected[name] if made > start]

    names = [f"w{number}" for number in range(8)]
    writers = [asyncio.create_task(write(name)) for name in names]
    await asyncio.gather(*(follow(names) for _ in range(6)))


async def test_what_no_column_can_show_breaks_neither_watches_nor_writes(client: Client) -> None:
    pods = "/api/v1/namespaces/default/pods"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}
    await client.ok("POST", pods, pod)
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    async with client.session.get(client.server.url + pods, params={"watch": "1"}, headers=table) as response:
        watch = Watch(response)
        assert (await watch.next())["type"] == "ADDED"
        odd = {"status": {"containerStatuses": 5}}
        async with asyncio.timeout(DEADLINE_S):
            await client.ok("PATCH", f"{pods}/p/status", odd, media=MERGE)
            await client.ok("POST", pods, {**pod, "metadata": {"name": "q"}})
        rows = [(await watch.next())["object"]["rows"][0] for _ in range(2)]
        assert [row["object"]["metadata"]["name"] for row in rows] == ["p", "q"]
        assert rows[0]["cells"][:2] == ["p", None]
    async with client.session.get(client.server.url + pods, headers=table) as response:
        assert response.status == 200


async def test_initial_events_end_with_a_bookmark(client: Client) -> None:
    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("a"))
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    watch = await client.watch(WIDGETS, **query)
    assert (await watch.next())["object"]["metadata"]["name"] == "a"
    bookmark = await watch.next()
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["kind"] == "Widget"
    assert bookmark["object"]["metadata"]["annotations"] == END
    listed = await client.ok("GET", WIDGETS)
    assert bookmark["object"]["metadata"]["resourceVersion"] == listed["metadata"]["resourceVersion"]
    watch.close()


async def test_bookmarks_keep_a_quiet_watch_current(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BOOKMARK_INTERVAL_S", 0.05)
    await client.define_widgets()
    watch = await client.watch(WIDGETS, allowWatchBookmarks="true")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    created = await client.ok("POST", "/api/v1/namespaces/default/configmaps", config)
    while (event := await watch.next())["object"]["metadata"]["resourceVersion"] != created["metadata"][
        "resourceVersion"
    ]:
        assert event["type"] == "BOOKMARK"
    watch.close()


async def test_an_object_enters_and_leaves_the_view_of_a_selector(client: Client) -> None:
    await client.define_widgets()
    watch = await client.watch(WIDGETS, labelSelector="on=yes")
    await client.ok("POST", WIDGETS, widget("a"))
    for value in ("yes", "no"):
        await client.ok("PATCH", f"{WIDGETS}/a", {"metadata": {"labels": {"on": value}}}, media=MERGE)
    last = await client.ok("GET", f"{WIDGETS}/a")
    assert await watch.names(1) == [("ADDED", "a")]
    left = await watch.next()
    assert (left["type"], left["object"]["metadata"]["labels"]) == ("DELETED", {"on": "yes"})
    assert left["object"]["metadata"]["resourceVersion"] == last["metadata"]["resourceVersion"]
    watch.close()


async def test_too_old_versions_expire(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RING_EVENTS", 3)
    await client.define_widgets()
    created = await client.ok("POST", WIDGETS, widget("a"))
    page = await client.ok("GET", WIDGETS, limit="1")
    await client.ok("POST", WIDGETS, widget("b"))
    for size in range(2, 7):
        await client.ok("PATCH", f"{WIDGETS}/a", {"spec": {"size": size}}, media=MERGE)
    old = created["metadata"]["resourceVersion"]
    watch = await client.watch(WIDGETS, resourceVersion=old)
    error = await watch.next()
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert await watch.next() == {}
    code, status = await client.call("GET", WIDGETS, resourceVersion=old, resourceVersionMatch="Exact")
    assert (code, status["reason"]) == (410, "Expired")
    assert "continue" not in page["metadata"]


async def test_a_timeout_ends_a_watch_in_order(client: Client) -> None:
    watch = await client.watch("/api/v1/namespaces", timeoutSeconds="1", resourceVersion="1")
    while event := await watch.next():
        assert event["type"] == "ADDED"


async def test_a_slow_watcher_is_dropped_and_stops_nobody(
    server: ApiServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "QUEUE_BYTES", 1 << 20)
    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("a"))
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    reader, writer = await asyncio.open_connection(
        sock=slow, ssl=ssl.create_default_context(cafile=str(server.ca_file)), server_hostname="127.0.0.1", limit=1024
    )
    request = f"GET {WIDGETS}?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    writer.write(request.encode())
    await reader.readuntil(b"\r\n\r\n")  # from here on it does not read
    quick = await client.watch(WIDGETS)
    await quick.next()
    async with asyncio.timeout(DEADLINE_S):
        for number in range(10_000):
            body = {"spec": {"notes": [f"{number} " + "x" * 100_000]}}
            await client.ok("PATCH", f"{WIDGETS}/a", body, media=MERGE)
            event = await quick.next()
            assert event["object"]["spec"]["notes"][0].startswith(f"{number} ")
            async with client.session.get(f"{server.url}/metrics") as response:
                if "apiserver_terminated_watchers_total 1" in await response.text():
                    break
    quick.close()
    writer.transport.abort()


async def test_kubernetes_aio_lists_and_watches(server: ApiServer, client: Client) -> None:
    from kubernetes import aio

    await client.define_widgets()
    await client.ok("POST", WIDGETS, widget("a"))
    configuration = aio.client.Configuration()
    await aio.config.load_kube_config(config_file=str(server.kubeconfig), client_configuration=configuration)
    async with aio.client.ApiClient(configuration) as api:
        custom = aio.client.CustomObjectsApi(api)
        group = ("test.kubetwin.io", "v1", "default", "widgets")
        listed: Any = await custom.list_namespaced_custom_object(*group)
        version = listed["metadata"]["resourceVersion"]
        await custom.patch_namespaced_custom_object(*group, "a", {"spec": {"size": 4}}, _content_type=MERGE)
        async with aio.watch.Watch() as watch, asyncio.timeout(DEADLINE_S):
            watch.stream(custom.list_namespaced_custom_object, *group, resource_version=version)
            event: Any = await watch.next()
            assert (event["type"], event["object"]["spec"]["size"]) == ("MODIFIED", 4)


async def test_a_restart_keeps_objects_history_and_port(tmp_path: Path) -> None:
    async with ApiServer(tmp_path) as first, trusting(first) as session:
        client = Client(first, session)
        await client.define_widgets()
        old = (await client.ok("POST", WIDGETS, widget("a")))["metadata"]["resourceVersion"]
        await client.ok("PATCH", f"{WIDGETS}/a", {"spec": {"size": 2}}, media=MERGE)
        await client.ok("POST", WIDGETS, widget("b"))
        last = await client.ok("DELETE", f"{WIDGETS}/b")
        assert last["status"] == "Success"
        newest = (await client.ok("GET", WIDGETS))["metadata"]["resourceVersion"]
        port, token = first.port, first.token
    async with ApiServer(tmp_path) as second, trusting(second) as session:
        client = Client(second, session)
        assert (second.port, second.token) == (port, token)
        listed = await client.ok("GET", WIDGETS)
        assert listed["metadata"]["resourceVersion"] == newest
        assert [item["spec"]["size"] for item in listed["items"]] == [2]
        watch = await client.watch(WIDGETS, resourceVersion=old)
        assert await watch.names(3) == [("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "b")]
        watch.close()
        created = await client.ok("POST", WIDGETS, widget("c"))
        assert int(created["metadata"]["resourceVersion"]) > int(newest)


async def test_one_server_for_each_data_directory(tmp_path: Path) -> None:
    async with ApiServer(tmp_path):
        with pytest.raises(StorageError, match="locked"):
            await ApiServer(tmp_path).__aenter__()


async def test_an_answered_write_survives_kill_9(tmp_path: Path) -> None:
    process, probe = await started(tmp_path)
    answered: list[str] = []
    path = "/api/v1/namespaces/default/configmaps"
    async with trusting(probe) as session:
        client = Client(probe, session)

        async def write(lane: int) -> None:
            for number in range(1000):
                name = f"c{lane}-{number}"
                body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
                await client.ok("POST", path, body)
                answered.append(name)
                if len(answered) == 200:
                    process.send_signal(signal.SIGKILL)

        outcomes = await asyncio.gather(*(write(lane) for lane in range(8)), return_exceptions=True)
        assert all(isinstance(outcome, OSError | Exception) for outcome in outcomes)
    assert await process.wait() == -signal.SIGKILL
    async with ApiServer(tmp_path) as again, trusting(again) as session:
        listed = await Client(again, session).ok("GET", path)
        kept = {item["metadata"]["name"] for item in listed["items"]}
        assert set(answered) <= kept
        assert len(answered) >= 200


async def test_sigterm_ends_the_process_and_its_watches(tmp_path: Path) -> None:
    process, probe = await started(tmp_path)
    kubectl = Kubectl(probe, tmp_path)
    watching = await kubectl.start("get", "ns", "-w")
    assert watching.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert (await watching.stdout.readline()).startswith(b"NAME")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        output, _ = await watching.communicate()
    assert b"default" in output
