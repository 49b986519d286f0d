"""`kubectl twin` against a served Kubernetes API, with the real kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubetwin.apiserver import ApiServer
from kubetwin.kubectl import Kubectl, KubectlMissing
from kubetwin.twin.asking import NoAnswer, ask, new_query
from kubetwin.twin.options import Target
from tests.kubetwin.twin_world import TWIN, TwinWorld, device, model, reported, status, twin_world

pytestmark = pytest.mark.timeout(180)  # each command starts kubectl several times


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[TwinWorld]:
    async with twin_world(tmp_path) as running:
        await running.apply(model(), device(set_point="42"), status())
        yield running


async def test_a_table_an_object_and_a_name(world: TwinWorld) -> None:
    await world.report(
        "boiler-1",
        reported("temperature", "21.5", age_s=600, quality="stale", reason="a cycle was missed"),
        reported("set-point", "42", desired="42", write="applied"),
    )
    table = await world.twin("get")
    assert table.rows() == [
        ["boiler-1", "temperature", "21.5", "Celsius", "-", "-", "10m", "stale"],
        ["boiler-1", "set-point", "42", "Celsius", "42", "yes", table.rows()[1][6], "good"],
        ["boiler-1", "pump", "-", "-", "-", "-", "-", "-"],
    ]
    wide = await world.twin("get", "boiler-1", "-o", "wide", "-p", "temperature")
    assert "online" in wide.rows()[0]
    assert wide.out.splitlines()[1].endswith("edge-1   a cycle was missed")
    (row,) = json.loads((await world.twin("get", "default/boiler-1", "-p", "set-point", "-o", "json")).out)
    assert 0 < row.pop("ageSeconds") < 60
    assert row.pop("collected").endswith("Z")
    assert row == {
        "namespace": "default", "device": "boiler-1", "property": "set-point", "type": "FLOAT", "access": "ReadWrite",
        "unit": "Celsius", "reported": "42", "quality": "good", "desired": "42", "write": "applied", "inSync": True,
        "state": "online", "node": "edge-1", "reason": None,
    }  # fmt: skip
    assert [r["property"] for r in yaml.safe_load((await world.twin("get", "-o", "yaml")).out)] == [
        "temperature", "set-point", "pump",
    ]  # fmt: skip
    assert (await world.twin("get", "-o", "name")).out == "device.devices.kubeedge.io/boiler-1\n"
    assert len((await world.twin("get", "--no-headers")).out.splitlines()) == 3


async def test_which_devices_are_shown(world: TwinWorld) -> None:
    await world.run("create", "namespace", "dev")
    await world.apply(device("boiler-2", line="3"), device("boiler-1", "dev"), status("boiler-2"))
    both = await world.twin("get", "-A")
    assert both.out.split()[0] == "NAMESPACE"
    assert {tuple(row[:2]) for row in both.rows()} == {
        ("default", "boiler-1"), ("default", "boiler-2"), ("dev", "boiler-1"),
    }  # fmt: skip
    for arguments, devices in (
        (("-l", "line=3"), {"boiler-2"}),
        (("-l", "line!=3"), {"boiler-1"}),
        (("--field-selector", "metadata.name=boiler-2"), {"boiler-2"}),
        (("-n", "dev"), {"boiler-1"}),
        (("boiler-1", "boiler-2"), {"boiler-1", "boiler-2"}),
    ):
        assert {row[0] for row in (await world.twin("get", *arguments)).rows()} == devices
    several = await world.twin("get", "dev/boiler-1", "default/boiler-2", "-p", "pump")
    assert [row[:2] for row in several.rows()] == [["default", "boiler-2"], ["dev", "boiler-1"]]


WRONG = (
    (("get", "boiler-7"), 1, "there is no device 'boiler-7' in namespace default: kubectl get devices -n default"),
    (("get", "boiler-1", "boiler-x"), 1, "no device 'boiler-x' in namespace default; did you mean 'boiler-1'?"),
    (("get", "-p", "pum"), 1, "no device shown has a property 'pum'; did you mean 'pump'?"),
    (("get", "-l", "a in b"), 3, "Error: kubectl: "),
    (("get", "--context", "nope"), 3, 'context "nope" does not exist'),
    (("get", "--kubeconfig", "/nowhere/at/all"), 3, "/nowhere/at/all: no such file"),
    (("describe", "boiler-7"), 1, "there is no device 'boiler-7' in namespace default"),
    (("set", "boiler-7", "pump=true"), 1, "there is no device 'boiler-7' in namespace default"),
    (("history", "boiler-1", "pum"), 1, "has no property 'pum'; it has temperature, set-point, pump"),
    (("history", "boiler-1", "--edge", "/nowhere.sock"), 1, "does not answer at /nowhere.sock: No such file"),
)  # fmt: skip


async def test_what_is_wrong_is_a_sentence(world: TwinWorld) -> None:
    for arguments, code, says in WRONG:
        ran = await world.twin(*arguments)
        assert (ran.code, says in ran.err, "Traceback" in ran.err) == (code, True, False), (arguments, ran.err)
        assert ran.out == "" or "boiler-x" in arguments


async def test_a_namespace_without_devices_is_no_failure(world: TwinWorld) -> None:
    ran = await world.twin("get", "-n", "kube-public")
    assert (ran.code, ran.out, ran.err) == (0, "", "No devices found in namespace kube-public.\n")
    assert (await world.twin("get", "-n", "kube-public", "-o", "json")).out == "[]\n"


async def test_a_cluster_without_the_definitions_an_api_that_is_away_and_no_kubectl(tmp_path: Path) -> None:
    async with ApiServer(tmp_path / "data") as server:
        world = TwinWorld(server, tmp_path)
        ran = await world.twin("get")
        assert (ran.code, "install KubeEdge's definitions" in ran.err) == (3, True), ran.err
    ran = await world.twin("get")
    assert (ran.code, ran.err.startswith("Error: the Kubernetes API does not answer: ")) == (3, True), ran.err


def test_a_kubectl_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KubectlMissing, match="is not installed, or not on PATH"):
        asyncio.run(Kubectl((str(tmp_path / "kubectl"),)).get("devices", "default", "boiler-1"))


async def test_a_watch_shows_rows_as_they_change_and_devices_as_they_go(world: TwinWorld) -> None:
    await world.report("boiler-1", reported("temperature", "21.5"))
    async with world.following("get", "-w") as watch:
        assert (await watch.line()).split()[:2] == ["DEVICE", "PROPERTY"]
        assert [(await watch.line()).split()[1:3] for _ in range(3)] == [
            ["temperature", "21.5"], ["set-point", "-"], ["pump", "-"],
        ]  # fmt: skip
        await world.report("boiler-1", reported("temperature", "21.5", age_s=0))  # confirmed: no news
        await world.report("boiler-1", reported("temperature", "22", age_s=0))
        assert (await watch.line()).split()[1:3] == ["temperature", "22"]
        await world.report("boiler-1", state="offline")
        assert (await watch.line()).split()[-1] == "stale"
        await world.run("delete", "device", "boiler-1")
        assert [(await watch.line()).split()[-1] for _ in range(3)] == ["removed"] * 3


async def test_a_watch_goes_on_after_the_api_was_away(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with twin_world(tmp_path) as world:
            await world.apply(model(), device(), device("boiler-2"), status(), status("boiler-2"))
            await world.report("boiler-1", reported("temperature", "1"))
            watch = await stack.enter_async_context(world.following("get", "-w", "-o", "json", "-p", "temperature"))
            rows = [json.loads(await watch.line()) for _ in range(2)]
            assert [(r["device"], r["reported"]) for r in rows] == [("boiler-1", "1"), ("boiler-2", None)]
        assert "the Kubernetes API does not answer" in await watch.complaint()
        async with twin_world(tmp_path) as world:  # the same data and port
            await world.run("delete", "device", "boiler-2")
            await world.report("boiler-1", reported("temperature", "2"))
            seen = [json.loads(await watch.line())]
            while len(seen) < 2 or (seen[-1].get("removed") is None and seen[-1]["reported"] != "2"):
                seen.append(json.loads(await watch.line()))
            assert {(r["device"], r["reported"], r.get("removed")) for r in seen} >= {
                ("boiler-1", "2", None), ("boiler-2", None, True),
            }  # fmt: skip
            assert await watch.complaint() == "the Kubernetes API answers again"


async def test_set_is_checked_sent_and_shown(world: TwinWorld) -> None:
    ran = await world.twin("set", "boiler-1", "set-point=55", "pump=true")
    assert (ran.code, ran.out) == (0, "device.devices.kubeedge.io/boiler-1 patched\n")
    properties = (await world.kubectl.get("devices", "default", "boiler-1"))["spec"]["properties"]
    assert [p.get("desired") for p in properties] == [None, {"value": "55"}, {"value": "true"}]
    for wrong in ("set-point=200", "temperature=1", "pumps=true", "pump"):
        before = await world.kubectl.get("devices", "default", "boiler-1")
        ran = await world.twin("set", "boiler-1", "set-point=60", wrong)
        assert (ran.code, ran.out) == (2, "")
        assert await world.kubectl.get("devices", "default", "boiler-1") == before  # nothing of it was sent
    ran = await world.twin("set", "boiler-1", "set-point=61", "--dry-run")
    assert (ran.code, ran.out) == (0, "device.devices.kubeedge.io/boiler-1 patched (server dry run)\n")
    assert await world.kubectl.get("devices", "default", "boiler-1") == before
    ran = await world.twin("set", "boiler-1", "set-point=", "--wait")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "boiler-1: nothing is wanted of set-point")
    await world.run("delete", "devicemodel", "boiler")
    ran = await world.twin("set", "boiler-1", "set-point=60")
    assert (ran.code, "there is no device model 'boiler'" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("twin", "state", "code", "says"),
    (
        (reported("set-point", "55", desired="55", write="applied"), "online", 0, "boiler-1: set-point=55 applied"),
        (reported("set-point", "55.0", desired="55"), "ok", 0, "boiler-1: set-point=55 applied"),  # a stock edge
        (reported("set-point", "20", desired="55", write="failed", why="illegal data value"), "online", 1,
         "set-point=55 failed: illegal data value"),
        (reported("set-point", "20", desired="55", write="pending"), "offline", 4,
         "not applied within 4 s: set-point=55 is pending: the device is offline: no reply"),
    ),
)  # fmt: skip
async def test_set_waits_for_what_becomes_of_it(
    world: TwinWorld, twin: dict[str, Any], state: str, code: int, says: str
) -> None:
    wait = "--wait=4s" if code == 4 else "--wait"
    async with world.following("set", wait, "boiler-1", "set-point=55") as command:
        assert (await command.line()).endswith(" patched")
        assert "set-point=55 is pending" in await command.complaint()
        await world.report("boiler-1", twin, state=state, extensions={"reason": "no reply"})
        out, err = await asyncio.wait_for(command.process.communicate(), 30)
        assert command.process.returncode == code
        assert says in (out if code == 0 else err).decode()


async def test_a_question_is_answered_and_removed(world: TwinWorld) -> None:
    await world.report("boiler-1", extensions={"summary": "kept"})
    arguments = ("history", "boiler-1", "temperature", "--since", "10m", "--limit", "2")
    async with world.following(*arguments) as command:
        query_id, query = await question(world)
        assert (query["ask"], query["property"], query["limit"]) == ("history", "temperature", 2)
        assert 0 <= query["asked_ms"] - query["since_ms"] - 600_000 < 60_000
        values = [{"property": "temperature", "value": v, "collected": 1_767_323_045_000} for v in ("2\x1b", "1")]
        await answer(world, query_id, {"result": {"values": values, "truncated": True}, "answered_ms": 1})
        out, err = await asyncio.wait_for(command.process.communicate(), 30)
    assert command.process.returncode == 0
    assert [line.split() for line in out.decode().splitlines()] == [
        ["COLLECTED", "PROPERTY", "VALUE", "QUALITY"],
        ["2026-01-02T03:04:05.000Z", "temperature", "2\\x1b", "good"],
        ["2026-01-02T03:04:05.000Z", "temperature", "1", "good"],
    ]
    assert "these are the newest 2" in err.decode()
    assert await extensions(world) == {"summary": "kept", "queries": {}}


@pytest.mark.parametrize(("number", "code"), ((signal.SIGINT, 130), (signal.SIGTERM, 143)))
async def test_a_question_is_removed_when_nobody_waits_any_more(
    world: TwinWorld, number: signal.Signals, code: int
) -> None:
    async with world.following("history", "boiler-1") as command:
        await question(world)
        command.process.send_signal(number)
        await asyncio.wait_for(command.process.communicate(), 30)
        assert command.process.returncode == code
    assert (await extensions(world))["queries"] == {}


async def test_an_error_for_an_answer_is_said(world: TwinWorld) -> None:
    async with world.following("history", "boiler-1") as command:
        query_id, _ = await question(world)
        await answer(world, query_id, {"error": "this edge core keeps no history", "answered_ms": 1})
        _, err = await asyncio.wait_for(command.process.communicate(), 30)
        assert (command.process.returncode, err) == (1, b"Error: this edge core keeps no history\n")
    assert (await extensions(world))["queries"] == {}


async def test_long_lists_come_in_pages(world: TwinWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.apply(*(device(f"boiler-{n}") for n in range(2, 6)))
    monkeypatch.setattr("kubetwin.kubectl.PAGE", 2)
    listing = await world.kubectl.list("devices", "default")
    assert [d["metadata"]["name"] for d in listing.items] == [f"boiler-{n}" for n in range(1, 6)]
    assert listing.version


async def test_a_cloudcore_that_knows_no_questions_is_said(world: TwinWorld) -> None:
    with pytest.raises(
        NoAnswer, match=r"nobody answered within 0\.5 s: CloudCore is not running, or is KubeEdge's own"
    ):
        await ask(world.kubectl, Target("default", "boiler-1"), new_query(ask="path"), timeout_s=0.5)
    assert (await extensions(world))["queries"] == {}


async def test_a_description_has_events_and_the_node(world: TwinWorld) -> None:
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "boiler-1.1", "namespace": "default"},
        "involvedObject": {"kind": "Device", "name": "boiler-1", "namespace": "default"}, "type": "Warning",
        "reason": "DeviceOffline", "message": "no reply", "lastTimestamp": "2026-01-02T03:04:05Z", "count": 1,
    }  # fmt: skip
    other = {**event, "metadata": {"name": "x", "namespace": "default"}, "message": "not this one"}
    other["involvedObject"] = {"kind": "Device", "name": "boiler-2", "namespace": "default"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}}
    await world.apply(event, other, node)
    await world.report("boiler-1", reported("temperature", "21.5"))
    ran = await world.twin("describe", "boiler-1")
    assert ran.code == 0, ran.err
    assert "no reply" in ran.out
    assert "not this one" not in ran.out
    assert "Node:         edge-1" in ran.out


async def test_a_reader_that_has_enough_is_no_failure(world: TwinWorld) -> None:
    shell = f"'{TWIN}' get -o wide | head -1"
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", shell, env=world.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (out.split()[0], err) == (b"DEVICE", b"")


async def question(world: TwinWorld) -> tuple[str, dict[str, Any]]:
    """The one that somebody put."""
    async with asyncio.timeout(30):
        while not (queries := (await extensions(world)).get("queries")):  # noqa: ASYNC110 - another process puts it
            await asyncio.sleep(0.05)
    ((query_id, query),) = queries.items()
    return query_id, query


async def answer(world: TwinWorld, query_id: str, said: dict[str, Any]) -> None:
    patch = {"status": {"extensions": {"queries": {query_id: {"answer": said}}}}}
    await world.kubectl.patch("devicestatuses", "default", "boiler-1", patch, "merge")


async def extensions(world: TwinWorld) -> dict[str, Any]:
    found: dict[str, Any] = (await world.kubectl.get("devicestatuses", "default", "boiler-1"))["status"].get(
        "extensions", {}
    )
    return found


# --- what cannot be provoked with the embedded API: a user who may not


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as kube-apiserver does for somebody without rights to some resources."""

    objects: dict[str, list[dict[str, Any]]]

    def do_GET(self) -> None:
        plural = self.path.partition("?")[0].rsplit("/", 1)[-1]
        known = plural in self.objects
        body: dict[str, Any] = {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": self.objects.get(plural)}
        if not known:
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
                    "message": f'{plural} is forbidden: User "eve" cannot list resource "{plural}"'}  # fmt: skip
        data = json.dumps(body).encode()
        self.send_response(200 if known else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@contextlib.contextmanager
def refusing(directory: Path, **objects: list[dict[str, Any]]) -> Iterator[Path]:
    """The kubeconfig of a user who may read these kinds and nothing else."""
    handler = type("Handler", (_Refusing,), {"objects": objects})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [],
            "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "namespace": "default"}}],
        }  # fmt: skip
        (directory / "kubeconfig").write_text(json.dumps(config))
        try:
            yield directory / "kubeconfig"
        finally:
            server.shutdown()
            thread.join()


async def test_who_may_not_read_models_does_without_and_is_told(tmp_path: Path) -> None:
    server = ApiServer(tmp_path / "unused")
    world = TwinWorld(server, tmp_path)
    given = {"devices": [device()], "devicestatuses": [status("boiler-1", reported("temperature", "21.5"))]}
    with refusing(tmp_path, **given) as kubeconfig:
        ran = await world.twin("get", "--kubeconfig", str(kubeconfig))
        assert (ran.code, ran.rows()[0][1:3]) == (0, ["temperature", "21.5"])
        assert "Warning: units and types are not shown: no permission: devicemodels is forbidden" in ran.err
    with refusing(tmp_path, devices=[device()]) as kubeconfig:
        ran = await world.twin("get", "--kubeconfig", str(kubeconfig))
        assert (ran.code, ran.out) == (3, "")
        assert 'Error: no permission: devicestatuses is forbidden: User "eve" cannot list' in ran.err
