"""The demo's files and commands; the demo itself is run in tests/e2e."""

import io
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dmi import ConfigError, check_device, device_from_crd, merge_model, model_from_crd
from kubetwin.demo import run
from kubetwin.demo.link import count_established
from kubetwin.demo.plan import NODE, PROCESSES, make_plan
from kubetwin.demo.processes import Processes
from kubetwin.demo.screen import Picture, make_screen, suggestions, wrap_command
from kubetwin.rows import DeviceRow, TwinRow


def test_the_demos_folder_is_private_and_short_enough_for_sockets(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "d")
    assert (tmp_path / "d").stat().st_mode & 0o077 == 0
    assert plan.hub_port != plan.modbus_port
    with pytest.raises(ConfigError, match="too long a path for unix sockets"):
        make_plan(tmp_path / ("d" * 90))


def test_the_example_fits_its_model_and_points_at_the_simulator(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    objects = {d["kind"]: d for d in yaml.safe_load_all(plan.manifests())}
    model, device = model_from_crd(objects["DeviceModel"]), device_from_crd(objects["Device"])
    assert check_device(device, model) == []
    assert device.node == NODE
    assert merge_model(device, model).protocol_config["port"] == plan.modbus_port


def test_every_process_has_a_command_that_is_the_same_every_time(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    commands = [plan.command(name) for name in PROCESSES]
    assert commands == [plan.command(name) for name in PROCESSES]
    assert len({tuple(c) for c in commands}) == len(PROCESSES)


def test_the_link_is_what_the_kernel_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert count_established(port) == 0
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert count_established(port) == 1


def test_a_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", 1.0) == 1
    assert run(tmp_path / "file" / "below", 1.0) == 1
    assert [line.startswith("demo: ") for line in capsys.readouterr().err.splitlines()] == [True, True]


def test_a_kubectl_of_the_demo_is_not_taken_for_its_api_server(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    waiting = [sys.executable, "-c", "input()", "get", "devices", "-w", "--kubeconfig", str(plan.kubeconfig)]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kubectl:
        assert Processes(plan).pids() == {}
        kubectl.communicate(b"\n", timeout=10)


@pytest.mark.parametrize("width", (40, 100, 160))
@pytest.mark.parametrize("folder", ("d", "with space's"))
def test_a_command_copied_from_the_screen_is_the_command(tmp_path: Path, folder: str, width: int) -> None:
    for command in suggestions(make_plan(tmp_path / folder)):
        lines = wrap_command(command, width)
        assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(command)
        assert all(len(line) <= width or len(shlex.split(line.removesuffix(" \\"))) == 1 for line in lines)


def test_the_screen_says_once_why_a_device_is_offline_and_marks_the_broken_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    out = io.StringIO()
    why = "cannot connect to 127.0.0.1:1502"
    twins = [
        TwinRow(device="default/b", property_name=name, value="1", unit="", desired="", write="", age_s=1.0,
                quality="bad", reason=reason)
        for name, reason in (("a", why), ("b", why), ("c", "not a number"))
    ]  # fmt: skip
    pids = {name: 1 for name in PROCESSES if name != "apiserver"}
    with make_screen(make_plan(tmp_path), out) as screen:
        screen.show(
            Picture(
                twins=twins, devices=[DeviceRow(device="default/b", state="offline", reason=why)], pids=pids,
                endings={"apiserver": "signal SIGKILL"}, connected=True, problem="",
            )
        )  # fmt: skip
    shown = out.getvalue()
    assert shown.count(why) == 1
    assert "not a number" in shown
    assert shown.count(" ── ") == 3
    assert shown.count(" ╳╳ ") == 1
