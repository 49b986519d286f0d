"""`kubetwin why` names what is broken between kubectl and edge core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import yaml

from tests.e2e.harness import Demo, wait_for
from tests.e2e.why_harness import BOTH, CLOUD, EDGE, apply, arguments, device, run_why, why, why_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seen_from", (BOTH, CLOUD, EDGE))
def test_a_path_that_is_well(demo: Demo, seen_from: str) -> None:
    told = why_until(demo, 0, seen_from=seen_from)
    assert set(told.states.values()) == ({"ok", "unknown"} if seen_from == EDGE else {"ok"}), told
    ended = "as far as could be seen" if seen_from == EDGE else "the whole path is fine"
    assert ended in told.summary


def test_a_question_leaves_nothing_behind(demo: Demo) -> None:
    why(demo, seen_from=CLOUD)
    assert not demo.status("boiler-1")["extensions"].get("queries")


def test_as_a_plugin_of_kubectl(demo: Demo) -> None:
    program = "import sys; from kubetwin.cli import kubectl_twin; sys.exit(kubectl_twin())"
    result = subprocess.run(
        [sys.executable, "-c", program, "why", *arguments(demo, CLOUD), "-n", "default", "boiler-1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "the whole path is fine"


def test_nobody_to_ask() -> None:
    result = run_why("--no-api", "default/x")
    if "there is no edge core here" in result.stdout:  # as on any machine that is no gateway
        assert result.exit_code == 3


def test_the_device_is_missing(demo: Demo) -> None:
    told = why(demo, "default/boiler-9")
    assert told.exit_code == 12, told
    assert "no Device 'boiler-9'" in told.summary
    assert why(demo, "default/boiler-9", EDGE).exit_code == 19


def test_the_model_is_missing(demo: Demo) -> None:
    apply(demo, device("no-model", demo, deviceModelRef={"name": "boilr"}))
    told = why_until(demo, 13, "default/no-model")
    assert "'boilr'" in told.summary


def test_the_declaration_does_not_fit(demo: Demo) -> None:
    apply(demo, device("read-only", demo, desired={"temperature": "20"}))
    told = why_until(demo, 14, "default/read-only")
    assert "ReadOnly" in told.summary
    apply(demo, device("bad-register", demo, visitor={"register": "HoldingRegisters"}))
    told = why_until(demo, 14, "default/bad-register")
    assert "HoldingRegisters" in told.summary
    assert "kubectl edit device -n default bad-register" in told.verdict["todo"]


def test_the_node_is_not_named_or_not_connected(demo: Demo) -> None:
    apply(demo, device("no-node", demo, nodeName=""))
    assert "nowhere" in why_until(demo, 15, "default/no-node").summary
    apply(demo, device("other-node", demo, nodeName="edge-9"))
    told = why_until(demo, 17, "default/other-node", seen_from=CLOUD)
    assert "edge-9" in told.summary
    both = why_until(demo, 17, "default/other-node")
    assert any("the edge core here is node edge-1" in note for note in both.verdict["notes"])


@pytest.mark.slow
def test_edge_core_is_killed(demo: Demo) -> None:
    demo.kill("edgecore")
    assert "edge-1" in why_until(demo, 17, seen_from=CLOUD).summary
    assert "edge core" in why_until(demo, 17, seen_from=EDGE).summary
    told = why_until(demo, 17)
    assert {told.states[number] for number in range(1, 7)} == {"ok"}, told
    demo.restart("edgecore")
    why_until(demo, 0)


@pytest.mark.slow
def test_edge_core_hangs(demo: Demo) -> None:
    process = psutil.Process(demo.pid("edgecore"))
    process.send_signal(signal.SIGSTOP)
    try:
        assert "hangs" in why_until(demo, 17).summary
        assert "is connected, and its edge core did not answer" in why(demo, seen_from=CLOUD).summary
    finally:
        process.send_signal(signal.SIGCONT)
    why_until(demo, 0)


@pytest.mark.slow
def test_edge_core_is_cut_off(demo: Demo) -> None:
    """Both cores run, and the way between them is gone."""
    file = demo.directory / "edgecore.yaml"
    before = file.read_text()
    hub = yaml.safe_load(before)["modules"]["edgeHub"]["websocket"]["server"]
    demo.kill("edgecore")
    file.write_text(before.replace(hub, "127.0.0.1:1"))
    try:
        demo.restart("edgecore")
        trouble = "edge core does not reach wss://127.0.0.1:1"  # once it listens
        wait_for(lambda: trouble in why(demo, seen_from=EDGE).summary, within_s=20, what="edge core says so")
        told = why_until(demo, 17)
        assert trouble in told.summary
        assert {told.states[number] for number in (6, 8, 9, 10, 11, 12, 13)} == {"ok"}, told
        assert "edge-1" in why_until(demo, 17, seen_from=CLOUD).summary
    finally:
        file.write_text(before)
        demo.kill("edgecore")
        demo.restart("edgecore")
    why_until(demo, 0)


@pytest.mark.slow
def test_cloudcore_is_killed(demo: Demo) -> None:
    demo.kill("cloudcore")
    assert "did not answer" in why_until(demo, 16, seen_from=CLOUD).summary
    told = why_until(demo, 17, seen_from=EDGE)
    assert "does not reach" in told.summary
    both = why_until(demo, 16)
    assert both.states[17] != "ok" or both.states[7] == "broken"
    assert both.states[11] == "ok", "what works beyond is still seen from the edge"
    demo.restart("cloudcore")
    why_until(demo, 0)


def test_the_api_is_away(demo: Demo) -> None:
    demo.kill("apiserver")
    told = why(demo)
    assert told.exit_code == 11, told
    assert told.states[13] == "ok", "the edge's half is seen all the same"
    # CloudCore cannot write what the edge sends either, and so does not confirm it.
    told = why_until(demo, 26, seen_from=EDGE)
    assert "not confirmed" in told.summary
    demo.restart("apiserver")
    why_until(demo, 0)


def test_without_a_cluster_there_is_still_the_edge(demo: Demo) -> None:
    environment = {**os.environ, "KUBECONFIG": str(demo.directory / "none")}
    result = subprocess.run(
        [sys.executable, "-m", "kubetwin", "why", "--edge", demo.summary["edge"], "default/boiler-1"],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert "kubectl has no cluster configured here" in result.stdout
