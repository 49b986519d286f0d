"""The `eventBus` section: what cannot work is refused by its key, before anything is started."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import yaml

from dmi import ConfigError
from edgecore.config import EdgeCoreConfig, EventBusConfig, EventBusTls, TopicRule
from edgecore.configfile import load_config
from edgecore.eventbus import settings as module
from edgecore.eventbus.settings import check_event_bus, external_broker, internal_broker, tls_context


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls"),
    (
        ("tcp://127.0.0.1:1883", "127.0.0.1", 1883, False),
        ("mqtt://broker", "broker", 1883, False),
        ("ssl://broker", "broker", 8883, True),
        ("mqtts://broker:1", "broker", 1, True),
        ("tcp://[::1]:1884/", "::1", 1884, False),
    ),
)
def test_urls(url: str, host: str, port: int, is_tls: bool) -> None:
    target = external_broker(EventBusConfig(enable=True, mqtt_server_external=url), "edge-1")
    assert (target.host, target.port, target.tls is not None) == (host, port, is_tls)


@pytest.mark.parametrize(
    ("made", "key", "says"),
    (
        ({"mqtt_server_external": "http://broker"}, "mqttServerExternal", "ssl://"),
        ({"mqtt_server_external": "tcp://"}, "mqttServerExternal", "host:port"),
        ({"mqtt_server_external": "tcp://broker:99999"}, "mqttServerExternal", "URL"),
        ({"mqtt_server_external": "tcp://broker:0"}, "mqttServerExternal", "port 0"),
        ({"mqtt_server_external": "tcp://u:p@broker"}, "mqttServerExternal", "mqttPasswordFile"),
        ({"tls": EventBusTls(enable=True)}, "mqttServerExternal", "ssl://"),
        (
            {"mqtt_server_external": "ssl://broker", "tls": EventBusTls(True, "/nowhere/ca.crt")},
            "eventBusTLS.tlsMqttCAFile",
            "/nowhere/ca.crt",
        ),
        ({"mqtt_password_file": "/nowhere"}, "mqttPasswordFile", "/nowhere"),
        ({"mqtt_password_file": "/x", "mqtt_password": "y"}, "mqttPasswordFile", "one of them"),
        ({"mqtt_mode": 0, "mqtt_server_internal": "ssl://127.0.0.1"}, "mqttServerInternal", "tcp://"),
        ({"mqtt_sub_client_id": "a", "mqtt_pub_client_id": "a"}, "mqttPubClientID", "only one"),
        ({"topic_rules": (TopicRule(write="a"),)}, "topicRules[0].write", "{property}"),
    ),
)
def test_what_cannot_work_is_named(made: dict[str, Any], key: str, says: str) -> None:
    config = EventBusConfig(enable=True, **made)
    with pytest.raises(ConfigError) as refused:
        check_event_bus(config)
    assert refused.value.path == f"modules.eventBus.{key}"
    assert says in refused.value.problem
    assert "u:p" not in str(refused.value)
    check_event_bus(msgspec.structs.replace(config, enable=False))


def test_it_is_checked_when_the_file_is_read(tmp_path: Path) -> None:
    data = msgspec.to_builtins(EdgeCoreConfig())
    data["modules"]["eventBus"].update(enable=True, mqttServerExternal="ftp://x")
    file = tmp_path / "edgecore.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"modules\.eventBus\.mqttServerExternal"):
        load_config(file)


def test_a_password_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    config = EventBusConfig(enable=True, mqtt_username="u", mqtt_password_file=str(file))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        external_broker(config, "edge-1")
    file.chmod(0o600)
    target = external_broker(config, "edge-1")
    assert target.password == "s3cret"
    assert "s3cret" not in repr(target)


def test_client_ids_are_the_same_after_a_restart() -> None:
    first = external_broker(EventBusConfig(enable=True), "edge-1")
    assert first == external_broker(EventBusConfig(enable=True), "edge-1")
    assert first.sub_id != first.pub_id
    assert first.sub_id != external_broker(EventBusConfig(enable=True), "edge-2").sub_id
    own = internal_broker(EventBusConfig(enable=True, mqtt_sub_client_id="s", mqtt_pub_client_id="p"), "edge-1")
    assert (own.sub_id, own.pub_id) == ("s", "p")


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == "amqtt" else importlib.machinery.ModuleSpec(name, None)

    monkeypatch.setattr(module, "find_spec", find)
    check_event_bus(EventBusConfig(enable=True))
    with pytest.raises(ConfigError, match=r"amqtt is not installed.*kubetwin\[eventbus\]"):
        check_event_bus(EventBusConfig(enable=True, mqtt_mode=1))


def test_certificates_that_do_not_fit_are_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {name: tmp_path / name for name in ("ca.pem", "one.pem", "one.key", "two.key")}
    authority.cert_pem.write_to_path(files["ca.pem"])
    one, two = authority.issue_cert("one"), authority.issue_cert("two")
    one.cert_chain_pems[0].write_to_path(files["one.pem"])
    one.private_key_pem.write_to_path(files["one.key"])
    two.private_key_pem.write_to_path(files["two.key"])

    def tls(certificate: str, key: str) -> EventBusTls:
        return EventBusTls(True, str(files["ca.pem"]), certificate, key)

    assert tls_context(tls(str(files["one.pem"]), str(files["one.key"]))).check_hostname
    assert tls_context(tls("", "")).check_hostname, "no certificate of our own is fine"
    with pytest.raises(ConfigError, match="tlsMqttCertFile"):
        tls_context(tls(str(files["one.pem"]), str(files["two.key"])))
    with pytest.raises(ConfigError, match="tlsMqttPrivateKeyFile"):
        tls_context(tls(str(files["one.pem"]), "/nowhere"))
