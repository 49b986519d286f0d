"""`cloudcore.yaml`: upstream's names and defaults, and what is said of what is wrong."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cloudcore.__main__ import main
from cloudcore.app import _controller_settings
from cloudcore.config import CloudCoreConfig, load_config, without_effect
from dmi import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cloudcore.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("flag", ("--minconfig", "--defaultconfig"))
def test_printed_configuration_loads_back_as_the_defaults(tmp_path: Path, flag: str) -> None:
    result = CliRunner().invoke(main, [flag])
    assert result.exit_code == 0
    config, unknown = load_config(write(tmp_path, result.output))
    assert not unknown
    assert config.modules.cloud_hub.advertise_address
    assert config.kube_api_config == CloudCoreConfig().kube_api_config
    assert config.modules.cloud_hub.websocket == CloudCoreConfig().modules.cloud_hub.websocket
    assert config.modules.cloud_hub.node_limit == 500


def test_names_are_upstreams() -> None:
    whole = yaml.safe_load(CliRunner().invoke(main, ["--defaultconfig"]).output)
    assert (whole["apiVersion"], whole["kind"]) == ("cloudcore.config.kubeedge.io/v1alpha1", "CloudCore")
    assert whole["kubeAPIConfig"] == {"master": "", "kubeConfig": "", "qps": 2500, "burst": 5000}
    hub = whole["modules"]["cloudHub"]
    assert hub["keepaliveInterval"] == 30
    assert hub["tlsCAFile"] == "/etc/kubeedge/ca/rootCA.crt"
    assert hub["tlsPrivateKeyFile"] == "/etc/kubeedge/certs/server.key"
    assert hub["dnsNames"] == [""]
    assert hub["websocket"] == {"enable": True, "address": "0.0.0.0", "port": 10000}
    assert whole["modules"]["deviceController"]["load"] == {"updateDeviceStatusWorkers": 1}
    assert whole["modules"]["deviceController"]["mirrorTwins"] is False


def test_unknown_keys_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    text = """
kind: CloudCore
commonConfig: {tunnelPort: 10350}
kubeAPIConfig: {kubeConfig: /x, contentType: application/json}
modules:
  cloudHub: {nodeLimit: 7, quic: {enable: false}, dnsNames:}
  edgeController: {enable: true}
  router: {enable: false}
"""
    config, unknown = load_config(write(tmp_path, text))
    assert config.kube_api_config.kube_config == "/x"
    assert config.modules.cloud_hub.node_limit == 7
    assert unknown == [
        "commonConfig.tunnelPort",
        "kubeAPIConfig.contentType",
        "modules.cloudHub.quic",
        "modules.router",
    ]


def test_keys_that_do_nothing_are_named_where_somebody_has_set_them(tmp_path: Path) -> None:
    upstreams = Path(__file__).parents[1] / "data" / "upstream-cloudcore.yaml"
    assert without_effect(load_config(upstreams)[0]) == []
    text = """
commonConfig: {monitorServer: {enableProfiling: true}}
modules:
  edgeController: {nodeUpdateFrequency: 60}
  deviceController: {buffer: {updateDeviceTwins: 7, deviceEvent: 1}, load: {updateDeviceStatusWorkers: 64}}
"""
    assert without_effect(load_config(write(tmp_path, text))[0]) == [
        "commonConfig.monitorServer.enableProfiling",
        "modules.edgeController.nodeUpdateFrequency",
        "modules.deviceController.buffer.updateDeviceTwins",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    (
        ("modules: {cloudHub: {nodeLimit: many}}", "modules.cloudHub.nodeLimit"),
        ("modules: {cloudHub: {websocket: {port: 70000}}}", "modules.cloudHub.websocket.port"),
        ("kind: EdgeCore", "kind"),
        ("- a", "cloudcore.yaml"),
        ("a: [", "cloudcore.yaml"),
    ),
)
def test_wrong_values_are_named(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        load_config(write(tmp_path, text))


def test_twins_are_mirrored_where_the_file_says_so(tmp_path: Path) -> None:
    config, unknown = load_config(write(tmp_path, "modules: {deviceController: {mirrorTwins: true}}"))
    assert not unknown
    assert _controller_settings(config).mirror_twins
    assert not _controller_settings(CloudCoreConfig()).mirror_twins
