"""Reads the `eventBus` section: which brokers there are, and how to reach them. Also used where the file is checked."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from dmi import ConfigError
from edgecore.config import EventBusConfig, EventBusTls
from edgecore.eventbus.rules import Rules

__all__ = ["BrokerTarget", "check_event_bus", "external_broker", "internal_broker", "tls_context"]

INTERNAL_ONLY: Final = 0
BOTH: Final = 1
_PLAIN: Final = ("tcp", "mqtt")
_TLS: Final = ("ssl", "tls", "tcps", "mqtts")
_SECTION: Final = "modules.eventBus"


class BrokerTarget(Struct, frozen=True):
    """A broker, and how edge core is its client."""

    label: str
    """For logs and metrics: `internal` or `external`."""
    url: str
    host: str
    port: int
    qos: int
    retain: bool
    sub_id: str
    pub_id: str
    username: str | None = None
    password: str | None = None
    tls: EventBusTls | None = None
    """None: plain TCP. Not enabled: TLS with the machine's own list of authorities."""

    @property
    def is_local(self) -> bool:
        return _is_loopback(self.host)

    def __repr__(self) -> str:
        return f"BrokerTarget({self.label}, {self.url})"  # never the password


def check_event_bus(config: EventBusConfig, path: str = _SECTION) -> None:
    """See that an enabled section can work, before anything is started.

    Raises:
        ConfigError: With the path of the value.
    """
    if not config.enable:
        return
    Rules(config.topic_rules, f"{path}.topicRules")
    modules = ["aiomqtt"]
    if config.mqtt_mode <= BOTH:
        modules.append("amqtt")
        internal_broker(config, "node", path=path)
    if config.mqtt_mode >= BOTH:
        target = external_broker(config, "node", path=path)
        if target.tls is not None:
            tls_context(target.tls, path=path)
    for module in modules:
        if find_spec(module) is None:
            raise ConfigError(f"{path}.enable", f"{module} is not installed: pip install 'kubetwin[eventbus]'")


def internal_broker(config: EventBusConfig, node: str, *, path: str = _SECTION) -> BrokerTarget:
    """The broker of modes 0 and 1. Its port may be 0: whichever is free."""
    key = f"{path}.mqttServerInternal"
    scheme, host, port = _split(config.mqtt_server_internal, key, least_port=0)
    if scheme in _TLS:
        raise ConfigError(key, f"{config.mqtt_server_internal!r}: the internal broker has no certificate: use tcp://")
    sub_id, pub_id = _client_ids(config, node)
    return BrokerTarget(
        "internal", config.mqtt_server_internal, host, port, config.mqtt_qos, config.mqtt_retain, sub_id, pub_id
    )


def external_broker(config: EventBusConfig, node: str, *, path: str = _SECTION) -> BrokerTarget:
    """The broker of modes 1 and 2.

    Raises:
        ConfigError: The URL or the password file cannot be used.
    """
    key = f"{path}.mqttServerExternal"
    url = config.mqtt_server_external
    scheme, host, port = _split(url, key, least_port=1)
    if config.tls.enable and scheme in _PLAIN:
        raise ConfigError(key, f"{url!r} is not encrypted, and eventBusTLS is enabled: write ssl://, or disable it")
    sub_id, pub_id = _client_ids(config, node)
    password = _password(config, path)
    return BrokerTarget(
        label="external",
        url=url,
        host=host,
        port=port,
        qos=config.mqtt_external_qos,
        retain=False,
        sub_id=sub_id,
        pub_id=pub_id,
        username=config.mqtt_username or None,
        password=password or None,
        tls=config.tls if scheme in _TLS else None,
    )


def tls_context(tls: EventBusTls, *, path: str = _SECTION) -> ssl.SSLContext:
    """A context that checks the broker's certificate and name, always.

    Raises:
        ConfigError: A file is missing or is not what it should be.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.enable:
        return context
    try:
        # Only this authority: a broker at the edge is not trusted because some public one vouches for it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=tls.tls_mqtt_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{path}.eventBusTLS.tlsMqttCAFile", f"{tls.tls_mqtt_ca_file}: {error}") from error
    files = (tls.tls_mqtt_cert_file, tls.tls_mqtt_private_key_file)
    if not any(files):
        return context
    for key, file in zip(("tlsMqttCertFile", "tlsMqttPrivateKeyFile"), files, strict=True):
        if not os.access(file, os.R_OK):
            raise ConfigError(
                f"{path}.eventBusTLS.{key}", f"{file or 'it'} cannot be read; empty both for no certificate"
            )
    try:
        context.load_cert_chain(*files, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{path}.eventBusTLS.tlsMqttCertFile", f"{files[0]} with {files[1]}: {error}") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, and nobody is there to type it")


def _split(url: str, key: str, *, least_port: int) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(key, f"not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(key, "holds a user or password; use mqttUsername and mqttPasswordFile")
    if parts.scheme not in _PLAIN + _TLS:
        wanted = ", ".join(f"{scheme}://" for scheme in _PLAIN + _TLS)
        raise ConfigError(key, f"{url!r} must start with one of {wanted}")
    if not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ConfigError(key, f"{url!r} is not of the form {parts.scheme}://host:port")
    if port is None:
        port = 8883 if parts.scheme in _TLS else 1883
    if port < least_port:
        raise ConfigError(key, f"{url!r}: nobody can listen on port {port}")
    return parts.scheme, parts.hostname, port


def _password(config: EventBusConfig, path: str) -> str:
    if not config.mqtt_password_file:
        return config.mqtt_password
    key = f"{path}.mqttPasswordFile"
    if config.mqtt_password:
        raise ConfigError(key, "there is mqttPassword as well: keep one of them")
    file = Path(config.mqtt_password_file)
    try:
        if file.stat().st_mode & 0o007:
            raise ConfigError(key, f"{file} is open to every user of this machine: chmod o= {file}")
        return file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(key, str(error)) from error


def _client_ids(config: EventBusConfig, node: str) -> tuple[str, str]:
    """The same after a restart, so that the broker knows its session. Upstream's have the time of day in them."""
    name = re.sub(r"[^\w.-]", "-", node, flags=re.ASCII)
    sub_id = config.mqtt_sub_client_id or f"kubetwin-{name}-sub"
    pub_id = config.mqtt_pub_client_id or f"kubetwin-{name}-pub"
    if sub_id == pub_id:
        raise ConfigError(f"{_SECTION}.mqttPubClientID", "it is mqttSubClientID: a broker lets in only one of them")
    return sub_id, pub_id


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
