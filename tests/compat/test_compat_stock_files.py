"""Upstream's own configuration files, with every key that it writes, are read; what means nothing here is named."""

from pathlib import Path

import pytest
import yaml

from cloudcore.config import load_config as load_cloud
from edgecore.configfile import load_config as load_edge

DATA = Path(__file__).parents[1] / "data"
NOT_HERE = {"taskManager", "dynamicController", "cloudStream", "router", "iptablesManager"}


def test_cloudcore_yaml() -> None:
    config, unknown = load_cloud(DATA / "upstream-cloudcore.yaml")
    hub = config.modules.cloud_hub
    assert (hub.websocket.port, hub.https.port, hub.keepalive_interval, hub.node_limit) == (10000, 10002, 30, 500)
    assert (hub.edge_cert_signing_duration, hub.token_refresh_duration) == (365, 12)
    assert hub.advertise_address == ["192.0.2.1"]
    assert (hub.authorization.enable, hub.authorization.debug) == (False, True)
    assert hub.strict_identity, "not one of upstream's keys: ours counts"
    assert {path.split(".")[1] for path in unknown if path.startswith("modules.")} - NOT_HERE <= {
        "cloudHub",
        "edgeController",
    }
    assert {path.rpartition(".")[2] for path in unknown} >= NOT_HERE
    assert "modules.cloudHub.quic" in unknown


def test_the_charts_other_version(tmp_path: Path) -> None:
    config = yaml.safe_load((DATA / "upstream-cloudcore.yaml").read_text())
    config["apiVersion"] = "cloudcore.config.kubeedge.io/v1alpha2"
    (file := tmp_path / "cloudcore.yaml").write_text(yaml.safe_dump(config))
    assert load_cloud(file)[0].modules.cloud_hub.enable


def test_edgecore_yaml(caplog: pytest.LogCaptureFixture) -> None:
    config = load_edge(DATA / "upstream-edgecore.yaml")
    hub = config.modules.edge_hub
    assert (hub.heartbeat, hub.websocket.server) == (15, "192.0.2.1:10000")
    assert (config.modules.edged.node_ip, config.node) == ("192.0.2.7", "edge-1")
    assert config.modules.edged.tailored_kubelet_config.node_lease_duration_seconds == 40
    assert "modules.edgeStream" in caplog.text
