"""`edgecore.yaml` and the command line."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dmi import ConfigError
from edgecore.config import DeviceTwinConfig, EdgeCoreConfig, socket_path
from edgecore.configfile import load_config, to_yaml


def edgecore(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as somebody would call it."""
    return subprocess.run(
        [sys.executable, "-m", "edgecore", *arguments], capture_output=True, text=True, check=False, timeout=30
    )


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "edgecore.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("minimal", (True, False))
def test_what_is_printed_loads_back(tmp_path: Path, minimal: bool, caplog: pytest.LogCaptureFixture) -> None:
    result = edgecore("--minconfig" if minimal else "--defaultconfig")
    assert result.returncode == 0
    config = load_config(written(tmp_path, result.stdout))
    assert config.node == socket.gethostname().lower()
    assert config.modules.edge_hub == EdgeCoreConfig().modules.edge_hub
    assert config.database == EdgeCoreConfig().database
    assert not caplog.records
    if not minimal:
        assert yaml.safe_load(result.stdout)["modules"]["edgeHub"]["messageQPS"] == 1000


def test_a_stock_file_loads_and_what_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stock = """
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {aliasName: default, dataSource: /var/lib/kubeedge/edgecore.db, driverName: sqlite3}
featureGates:
modules:
  edged: {enable: true, hostnameOverride: edge-7, rootDirectory: /var/lib/kubelet}
  edgeHub: {heartbeat: 15, messageQPS: 30, messageBurst: 60, token: secret, websocket: {server: "192.0.2.1:10000"}}
  eventBus: {enable: true, mqttMode: 2}
  serviceBus: {enable: true}
  deviceTwin: {dmiSockPath: /etc/kubeedge/dmi.sock}
"""
    config = load_config(written(tmp_path, stock))
    assert config.node == "edge-7"
    assert config.modules.edge_hub.message_qps == 30
    assert socket_path(config.modules.device_twin) == Path("/etc/kubeedge/dmi.sock")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "modules.edged.rootDirectory" in warnings[0]
    assert "token" not in warnings[0]
    assert config.modules.edge_hub.token == "secret"
    assert "secret" not in caplog.text
    assert next(r.getMessage() for r in caplog.records if "not available yet" in r.message).endswith("serviceBus")


@pytest.mark.parametrize(
    ("text", "named"),
    (
        ("modules: {edgeHub: {heartbeat: soon}}", "modules.edgeHub.heartbeat"),
        ("modules: {edgeHub: {heartbeat: 0}}", "modules.edgeHub.heartbeat"),
        ("modules: {edgeHub: {messageQPS: 0}}", "modules.edgeHub.messageQPS"),
        ("modules: {edgeHub: {websocket: {server: cloud}}}", "modules.edgeHub.websocket.server"),
        ("modules: {edgeHub: {websocket: {server: 'a, b:1'}}}", "modules.edgeHub.websocket.server: 'a' is not"),
        ("modules: {edgeHub: {websocket: {server: 'a:x,b:1'}}}", "modules.edgeHub.websocket.server: 'a:x' is not"),
        ("modules: {edgeHub: {quic: {enable: true}}}", "modules.edgeHub.websocket.enable"),
        ("modules: {edged: {hostnameOverride: a/b}}", "modules.edged.hostnameOverride"),
        ("modules: {deviceTwin: {enable: false}}", "modules.deviceTwin.enable"),
        ("database: {driverName: mysql}", "database.driverName"),
        ("kind: CloudCore", "CloudCore"),
        ("- a list", "not a mapping"),
        ("a: [", "cannot be read"),
    ),
)
def test_what_cannot_work_is_refused_by_its_path(tmp_path: Path, text: str, named: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert named in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_work_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    result = edgecore("--config", str(written(tmp_path, "modules: {edgeHub: {heartbeat: soon}}")))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "modules.edgeHub.heartbeat" in result.stderr
    assert edgecore("--no-such-option").returncode == 2


def test_what_lies_in_the_working_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('not ours')")
    program = "import sys; sys.argv[1:] = ['--minconfig']; from edgecore.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "edgeHub" in result.stdout


def test_a_directory_or_a_socket_name() -> None:
    assert socket_path(DeviceTwinConfig(dmi_sock_path="/run/x/")) == Path("/run/x/dmi.sock")
    assert socket_path(DeviceTwinConfig(dmi_sock_path="/run/x/old.sock")) == Path("/run/x/dmi.sock")


def test_a_file_to_yaml_is_whole() -> None:
    assert yaml.safe_load(to_yaml(EdgeCoreConfig()))["kind"] == "EdgeCore"


def test_the_running_process_stays_small() -> None:
    """What an edge box need not have in memory is not imported."""
    program = (
        "import sys, edgecore.app;"
        "print([m for m in ('kubernetes', 'aiohttp', 'cryptography', 'yaml', 'click', 'rich', 'pymodbus')"
        " if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
