"""What docs/running-mappers.md shows is accepted as it stands."""

import logging
import re
from pathlib import Path

import pytest
import yaml

from dmi.crd import device_from_crd
from dmi.types import PIN, DeviceModel
from edgecore import embedded
from edgecore.config import DeviceTwinConfig
from edgecore.configfile import load_config as load_edgecore
from edgecore.devicetwin import lease, spread
from edgecore.embedded import prepare
from mappers.drivers.modbus import ModbusDriver
from mappers.sdk import app, uplink, watchdog
from mappers.sdk.config import DataConfig, HttpConfig, LogConfig, load_config
from mappers.sdk.declaration import declare
from tests.mappers.test_mapper_several import command

PAGE = (Path(__file__).parents[2] / "docs" / "running-mappers.md").read_text()


def block(name: str) -> str:
    """The code block whose first line is `# NAME`."""
    found = re.search(rf"^( *)```\w+\n *# {re.escape(name)}\n(.*?)\n *```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"no block {name}"
    return "\n".join(line.removeprefix(found[1]) for line in found[2].splitlines())


def test_the_mappers_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(block("config.yaml"))
    config = load_config(tmp_path / "config.yaml")
    assert not caplog.records
    assert (config.http, config.data, config.log) == (HttpConfig(), DataConfig(), LogConfig())  # as it claims


def test_the_edge_cores_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "edgecore.yaml").write_text(block("edgecore.yaml"))
    prepared = prepare(load_edgecore(tmp_path / "edgecore.yaml"), where="modules.mappers")
    assert prepared is not None
    assert not caplog.records


def test_the_pinned_device() -> None:
    device = device_from_crd(yaml.safe_load(block("device.yaml")))
    assert device.protocol_config[PIN] == "modbus-basement"
    declaration = declare(ModbusDriver(), device, DeviceModel("default", "boiler"))
    assert (declaration.errors(), declaration.warnings) == ([], ())  # nor is the key one that nobody reads


async def test_the_service_runs_a_command_that_exists(tmp_path: Path) -> None:
    unit = block("/etc/systemd/system/mapper-modbus.service")
    (line,) = re.findall(r"^ExecStart=\S+/kubetwin (.*)$", unit, re.MULTILINE)
    arguments = [*line.split()[:-1], tmp_path / "missing.yaml"]
    async with command(*arguments) as process:
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert "missing.yaml' does not exist" in errors.decode()  # the file, nothing else


def test_the_figures_are_those_of_the_code() -> None:
    page = " ".join(PAGE.split())
    twin = DeviceTwinConfig()
    for sentence in (
        f"After {spread.MOVE_GRACE_S:g} s without it, its devices move",
        f"asks a mapper that has said nothing for {lease.QUIET_S:g} s",
        f"does not answer within {lease.PING_TIMEOUT_S:g} s is away",
        f"after {lease.QUIET_S + lease.PING_TIMEOUT_S:g} s its devices are with the others",
        f"{lease.LEASE_S:g} s after the last sign of life",
        f"may call {twin.report_rate} times a second, {twin.report_burst} at once",
        f"after at most {uplink.STOCK_BURST} at once",
        f"started over after {app.RESTART_S[0]:g} s to {app.RESTART_S[1]:g} s, while",
        f"started over after {2 * embedded.RESTART_S[0]:g} s to {embedded.RESTART_S[1]:g} s, and",
        f"for more than {watchdog.THRESHOLD_S:g} s is named",
    ):
        assert sentence in page, sentence
    assert uplink.PACED_S > 1  # below one call a second
