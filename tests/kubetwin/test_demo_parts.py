"""The demo's files and commands; the demo itself is run in tests/e2e."""

import socket
from pathlib import Path

import pytest
import yaml

from dmi import ConfigError, check_device, device_from_crd, merge_model, model_from_crd
from kubetwin.demo.link import count_established
from kubetwin.demo.plan import NODE, PROCESSES, make_plan


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
