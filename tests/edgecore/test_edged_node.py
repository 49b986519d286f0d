"""The Node in plain functions, and against what an upstream EdgeCore was recorded to send."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudedge import decode
from cloudedge.replies import result
from dmi import ConfigError
from edgecore.configfile import load_config
from edgecore.edged import duration_s
from edgecore.edged.machine import Machine, local_address, read_machine
from edgecore.edged.node import lease_object, missing_labels, node_labels, node_object, node_status, status_patch

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "captures" / "upstream-websocket.jsonl").read_text().splitlines()
]
MACHINE = Machine(
    architecture="amd64",
    kernel="6.1",
    os_image="Debian GNU/Linux 12 (bookworm)",
    machine_id="m",
    system_uuid="u",
    boot_id="b",
    cpus=2,
    memory_kib=4_000_000,
    memory_free_kib=1_000_000,
    disk_kib=1_000_000,
    disk_free_kib=500_000,
    threads=100,
    threads_max=32768,
)


def recorded(operation: str, resource: str, direction: str = "edge->cloud") -> Any:
    """The last one, which is the fullest."""
    messages = [line["msg"] for line in RECORDED if line["dir"] == direction and "msg" in line]
    return [m for m in messages if (m["route"]["operation"], m["route"]["resource"]) == (operation, resource)][-1]


def status(machine: Machine = MACHINE, *, at: float = 0, known: Any = None, address: str = "192.0.2.1") -> Any:
    return node_status("edge1", machine, address=address, version="0.1.0", at=at, known=known or {})


def shape(value: Any) -> Any:
    """Types instead of values; of a list the first."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_the_node_is_shaped_as_upstream_sends_it() -> None:
    theirs = recorded("insert", "null/node/edge1")["content"]
    labels = node_labels("edge1", MACHINE, {})
    ours = json.loads(json.dumps(node_object("edge1", labels, status())))
    assert labels == theirs["metadata"]["labels"]
    assert set(ours) == set(theirs)
    assert shape(ours["metadata"]) == shape({**theirs["metadata"], "annotations": {}})
    for key in ("conditions", "addresses", "nodeInfo"):
        assert shape(ours["status"][key]) == shape(theirs["status"][key]), key
    assert set(ours["status"]["capacity"]) <= set(theirs["status"]["capacity"])
    conditions = [c["type"] for c in theirs["status"]["conditions"]]
    assert [c["type"] for c in ours["status"]["conditions"]] == conditions
    assert ours["status"]["capacity"]["pods"] == "0"


def test_the_lease_is_shaped_as_upstream_sends_it() -> None:
    theirs = recorded("update", "kube-node-lease/lease/edge1")["content"]
    ours = lease_object(
        "edge1", duration_s=40, at=1795386330.182422, found={"metadata": theirs["metadata"]}, node_uid=""
    )
    assert ours["spec"] == theirs["spec"]
    without = {k: v for k, v in theirs["metadata"].items() if k != "managedFields"}
    assert ours["metadata"] == without
    new = lease_object("edge1", duration_s=40, at=0, found=None, node_uid="u1")
    assert new["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "edge1", "uid": "u1"}]
    assert new["spec"]["renewTime"] == "1970-01-01T00:00:00.000000Z"


def test_a_patch_holds_what_changed_and_the_heartbeats() -> None:
    first = status(at=0)
    assert status_patch(first, status(at=60, known=first)) is None
    later = status(msgspec.structs.replace(MACHINE, disk_free_kib=1000), at=60, known=first, address="192.0.2.9")
    patch = status_patch(first, later)
    assert patch is not None
    theirs = json.loads(recorded("patch", "null/nodepatch/edge1")["content"])["status"]
    assert patch["status"]["$setElementOrder/conditions"] == theirs["$setElementOrder/conditions"]
    assert set(patch["status"]) == {"conditions", "$setElementOrder/conditions", "addresses"}
    assert patch["status"]["addresses"][-1] == {"$patch": "replace"}
    by_type = {c["type"]: c for c in patch["status"]["conditions"]}
    assert by_type["DiskPressure"]["status"] == "True"
    assert by_type["DiskPressure"]["lastTransitionTime"] == "1970-01-01T00:01:00Z"
    assert by_type["Ready"]["lastTransitionTime"] == "1970-01-01T00:00:00Z"
    assert by_type["Ready"]["lastHeartbeatTime"] == "1970-01-01T00:01:00Z"
    unknown = {"conditions": [{**c, "status": "Unknown"} for c in first["conditions"]]}
    assert status(at=9, known=unknown)["conditions"][3]["lastTransitionTime"] == "1970-01-01T00:00:09Z"


def test_conditions_of_others_are_no_news() -> None:
    first = status(at=0)
    known = {**first, "conditions": [*first["conditions"], {"type": "NetworkUnavailable", "status": "False"}]}
    assert status_patch(known, status(at=60, known=known)) is None
    assert first["nodeInfo"]["kubeletVersion"] == "v0.1.0-kubetwin"


def test_recorded_answers_carry_the_node() -> None:
    answers = [line["msg"] for line in RECORDED if line["dir"] == "cloud->edge" and "msg" in line]
    of_node = [m for m in answers if m["route"]["resource"] == "null/nodepatch/edge1"]
    assert of_node
    for message in of_node:
        assert result(decode(msgspec.json.encode(message)))["metadata"]["uid"]


@pytest.mark.parametrize(("text", "seconds"), (("10s", 10), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400)))
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ("", "10", "s", "10 s", "-1s", "0s", "1x"))
def test_what_is_no_duration(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"duration|no time"):
        duration_s(text)
    file = tmp_path / "edgecore.yaml"
    setting = f"{{edged: {{tailoredKubeletConfig: {{nodeStatusUpdateFrequency: '{text}'}}}}}}"
    file.write_text(f"apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\nmodules: {setting}\n")
    with pytest.raises(ConfigError, match="nodeStatusUpdateFrequency"):
        load_config(file)


async def test_this_machine(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.cpus == os.cpu_count()
    assert machine.kernel == os.uname().release
    assert machine.memory_kib > machine.memory_free_kib > 0
    assert machine.disk_kib >= machine.disk_free_kib >= 0
    assert machine.threads_max > machine.threads > 0
    assert read_machine(tmp_path / "gone").disk_kib == 0
    assert await local_address("wss://127.0.0.1:10000") == "127.0.0.1"
    assert await local_address("wss://[::1") == ""


def test_labels_that_are_missing() -> None:
    labels = node_labels("edge1", MACHINE, {"room": "7"})
    assert not missing_labels({"metadata": {"labels": {**labels, "more": ""}}}, labels)
    assert missing_labels({"metadata": {"labels": {**labels, "room": "8"}}}, labels)
    assert missing_labels({"metadata": {}}, labels)
