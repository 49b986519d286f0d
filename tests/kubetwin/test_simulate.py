"""`kubetwin simulate`, as it is typed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetwin.cli import main


@contextmanager
def simulated(*options: str) -> Iterator[str]:
    """A running `kubetwin simulate modbus`; yields its first line."""
    command = [sys.executable, "-m", "kubetwin", "simulate", "modbus", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rstrip("\n")
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def typed(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["simulate", *words])
    return result.exit_code, result.output


def test_a_map_on_a_pseudo_terminal_and_its_control(tmp_path: Path) -> None:
    registers, socket = tmp_path / "registers.yaml", str(tmp_path / "control")
    registers.write_text("registers: [{register: HoldingRegister, offset: 0, value: 215}]\n")
    with simulated(
        "--mode", "RTU", "--pty", "--registers", str(registers), "--units", "1,4-5", "--control", socket
    ) as line:
        assert line.startswith("modbus rtu listening on /dev/")
        assert typed("control", socket, "get", "HoldingRegister", "0", "1", "5") == (0, "215\n")
        assert typed("control", socket, "fault", "drop=1") == (0, "ok\n")
        code, output = typed("control", socket, "fault", "drop=2")
        assert (code, "is not a probability" in output) == (1, True)
        assert typed("control", socket, "set", "HoldingRegister", "0", "7", "4") == (0, "ok\n")
        assert typed("control", socket, "stats") == (0, '{"requests":[],"faults":{}}\n')
    code, output = typed("control", socket, "stats")
    assert (code, output) == (1, f"Error: {socket}: no simulator listens there: No such file or directory\n")


def test_the_boiler_is_what_it_is_without_options() -> None:
    with simulated("--port", "0", "--fault", "delay=1ms") as line:
        assert line.startswith("modbus tcp listening on 127.0.0.1:")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    (
        (("--port", "99999"), 2, "--port"),
        (("--mode", "can"), 2, "--mode"),
        (("--units", "1,x"), 2, "write units from 0 to 255"),
        (("--units", "256"), 2, "write units from 0 to 255"),
        (("--units", "5-3"), 2, "write units from 0 to 255"),
        (("--pty",), 2, "are for rtu and ascii"),
        (("--mode", "rtu", "--pty", "--serial", "/dev/x"), 2, "not both"),
        (("--mode", "rtu", "--serial", "/dev/nowhere"), 1, "/dev/nowhere"),
        (("--mode", "tls"), 1, "cert: is missing"),
        (("--fault", "nope"), 1, "nope: there is no such fault"),
        (("--registers", "/nowhere.yaml"), 2, "does not exist"),
    ),
)
def test_what_is_wrong_is_said_in_a_sentence(words: tuple[str, ...], code: int, says: str) -> None:
    result = CliRunner().invoke(main, ["simulate", "modbus", *words])
    assert (result.exit_code, says in result.output) == (code, True), result.output
    assert "Traceback" not in result.output


def test_a_map_and_a_model_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("{}")
    code, output = typed("modbus", "--registers", str(file), "--model", str(file))
    assert (code, "not both" in output) == (1, True)
    code, output = typed("modbus", "--registers", str(file))
    assert (code, f"{file}: registers: there are none" in output) == (1, True)
