"""What `edgecore.yaml` can say: upstream's keys and defaults for the modules that are here (channel contract 6.3).

Upstream's times are whole seconds. Reading the file is `edgecore.configfile`'s work, so that YAML is not in
the memory of the process that runs.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

__all__ = [
    "API_VERSION",
    "KIND",
    "DatabaseConfig",
    "DeviceTwinConfig",
    "EdgeCoreConfig",
    "EdgeHubConfig",
    "EdgedConfig",
    "EventBusConfig",
    "EventBusTls",
    "HistoryConfig",
    "LocalApiConfig",
    "MappersConfig",
    "MetaManagerConfig",
    "Modules",
    "QuicConfig",
    "ServiceBusConfig",
    "TopicRule",
    "WebSocketConfig",
    "api_socket_path",
    "socket_path",
]

API_VERSION: Final = "edgecore.config.kubeedge.io/v1alpha2"
KIND: Final = "EdgeCore"
SOCKET_NAME: Final = "dmi.sock"
API_SOCKET_NAME: Final = "edgecore.sock"

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class DatabaseConfig(Struct, frozen=True, rename="camel"):
    driver_name: str = "sqlite3"
    """Only sqlite3 there is."""
    alias_name: str = "default"
    data_source: str = "/var/lib/kubeedge/edgecore.db"


class KubeletConfig(Struct, frozen=True, rename="camel"):
    """Those of upstream's keys that say something of the node."""

    node_status_update_frequency: str = "10s"
    """A Go duration: how often the machine is looked at. The status is sent when it changed, and every 5 minutes."""
    node_lease_duration_seconds: Annotated[int, Meta(ge=4, le=3600)] = 40
    """The Lease is renewed every quarter of it."""
    register_node: bool = True
    """Whether to make the Node object; without it the node must be there."""


class EdgedConfig(Struct, frozen=True, rename="camel"):
    """Of upstream's edged only the node: it is registered, its status reported, its Lease renewed. No pods."""

    enable: bool = True
    hostname_override: str = ""
    """The node's name. Empty: the host's name, in lower case."""
    node_labels: dict[str, str] = {}
    """Besides those every edge node has."""
    node_ip: str = field(name="nodeIP", default="")
    """Empty: the address that the cloud is reached from."""
    register_node: bool = True
    """Ours: the same as `tailoredKubeletConfig.registerNode`; either may be false."""
    tailored_kubelet_config: KubeletConfig = field(default_factory=lambda: KubeletConfig())


class WebSocketConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True
    server: str = "127.0.0.1:10000"
    """`host:port` of CloudHub; the host must be in its certificate. Several, with commas between: tried in turn,
    each 3 s after the one before it, or as soon as that has failed.
    """
    handshake_timeout: Seconds = 30
    read_deadline: Seconds = 15
    """How long the cloud may leave a ping unanswered."""
    write_deadline: Seconds = 15
    """How long one message may wait for the socket."""


class QuicConfig(Struct, frozen=True, rename="camel"):
    enable: bool = False


class EdgeHubConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True
    heartbeat: Seconds = 15
    message_qps: Annotated[int, Meta(ge=1)] = field(name="messageQPS", default=1000)
    """Messages a second to the cloud, keepalives apart. At upstream's 30 some dozen devices fall behind."""
    message_burst: Annotated[int, Meta(ge=1)] = 2000
    project_id: str = field(name="projectID", default="e632aba927ea4ac2b575ec1603d56f10")
    tls_ca_file: str = "/etc/kubeedge/ca/rootCA.crt"
    tls_cert_file: str = "/etc/kubeedge/certs/server.crt"
    tls_private_key_file: str = "/etc/kubeedge/certs/server.key"
    http_server: str = "https://127.0.0.1:10002"
    """Where to join, and to have the certificate renewed. Several, with commas between: tried in turn."""
    token: str = ""
    """Join token; taken out of the file once it was used. `bootstrap-edgecore.conf` beside the file goes first."""
    rotate_certificates: bool = True
    """Renew the certificate after 70 to 90 % of its time."""
    outbox_messages: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Events kept while the cloud is away; the oldest beyond are dropped, and counted. Ours."""
    outbox_bytes: Annotated[int, Meta(ge=64 * 1024)] = 16 * 1024 * 1024
    websocket: WebSocketConfig = WebSocketConfig()
    quic: QuicConfig = QuicConfig()


class MetaManagerConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True


class HistoryConfig(Struct, frozen=True, rename="camel"):
    """Recent reported values, in a file of their own. Ours: upstream keeps none."""

    enable: bool = False
    data_source: str = ""
    """Empty: `history.db` beside the database."""
    max_age: Annotated[float, Meta(gt=0)] = 24 * 3600
    """Seconds."""
    max_values: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    """Of one property."""
    max_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    """Of the file with its log; a value of more than a sixteenth of it is not kept."""


class DeviceTwinConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True
    dmi_sock_path: str = "/etc/kubeedge/"
    """Directory of `dmi.sock`. A path that ends in `.sock`, as old files have it, counts as its directory."""
    dmi_allowed_users: tuple[str | int, ...] = ()
    """Who may call the DMI socket besides root and this process' own user, by name or number; empty, and no groups
    either: whoever may open it (mode 0660)."""
    dmi_allowed_groups: tuple[str | int, ...] = ()
    report_rate: Annotated[int, Meta(ge=1)] = 2000
    """Calls a second of each mapper, in the long run. Upstream: 1 for all together."""
    report_burst: Annotated[int, Meta(ge=1)] = 4000
    history: HistoryConfig = HistoryConfig()


class EventBusTls(Struct, frozen=True, rename="camel"):
    enable: bool = False
    tls_mqtt_ca_file: str = field(name="tlsMqttCAFile", default="/etc/kubeedge/ca/rootCA.crt")
    tls_mqtt_cert_file: str = "/etc/kubeedge/certs/server.crt"
    tls_mqtt_private_key_file: str = "/etc/kubeedge/certs/server.key"


class TopicRule(Struct, frozen=True, rename="camel"):
    """What local apps see of devices, and under which topics besides upstream's own. The first rule that fits a device
    counts. In topics `{namespace}`, `{device}` and `{property}` are filled in.
    """

    devices: str = "*"
    """Shell pattern over `namespace/name`."""
    access: Literal["readWrite", "read", "none"] = "readWrite"
    """What apps may do with the device over upstream's topics: also update, only get and follow, or nothing."""
    publish: str = ""
    """Each new reported value goes here as well. Empty: nowhere."""
    payload: Literal["value", "json"] = "value"
    """The bare value, or an object with `value`, `type`, `collected` (epoch ms) and `quality`."""
    write: str = ""
    """A message here is taken as an update of the property's expected value. Empty: nowhere."""
    qos: Annotated[int, Meta(ge=0, le=2)] = 0
    retain: bool = False


class EventBusConfig(Struct, frozen=True, rename="camel"):
    enable: bool = False
    """Upstream's default is true. A gateway without a broker, which is most of them, needs none of this."""
    mqtt_mode: Annotated[int, Meta(ge=0, le=2)] = 2
    """0: internal broker only, 1: both, 2: external only."""
    mqtt_server_external: str = "tcp://127.0.0.1:1883"
    mqtt_server_internal: str = "tcp://127.0.0.1:1884"
    mqtt_qos: Annotated[int, Meta(ge=0, le=2)] = field(name="mqttQOS", default=0)
    """What edge core publishes with at the internal broker."""
    mqtt_external_qos: Annotated[int, Meta(ge=0, le=2)] = field(name="mqttExternalQOS", default=1)
    """What it publishes and subscribes with at the external one; upstream: always 1."""
    mqtt_retain: bool = False
    """Of what edge core publishes at the internal broker."""
    mqtt_session_queue_size: Annotated[int, Meta(ge=1)] = 100
    """Messages the internal broker keeps for a slow client."""
    mqtt_sub_client_id: str = field(name="mqttSubClientID", default="")
    """Empty: made of the node's name, and the same after a restart, so that the broker keeps the session."""
    mqtt_pub_client_id: str = field(name="mqttPubClientID", default="")
    mqtt_username: str = ""
    mqtt_password: str = ""
    mqtt_password_file: str = ""
    """Instead of `mqttPassword`: a file that only edge core can read."""
    tls: EventBusTls = field(name="eventBusTLS", default=EventBusTls())
    topic_rules: tuple[TopicRule, ...] = ()


class ServiceBusConfig(Struct, frozen=True, rename="camel"):
    enable: bool = False


class LocalApiConfig(Struct, frozen=True, rename="camel"):
    """Edge core's own API for this machine: health, metrics, twins, history, and what it knows of a device's path."""

    enable: bool = True
    socket: str = ""
    """Unix socket, mode 0660. Empty: `edgecore.sock` beside `dmi.sock`."""


class MappersConfig(Struct, frozen=True, rename="camel"):
    """Mappers inside this process, for small gateways. Not one of upstream's modules."""

    enable: bool = False
    protocols: tuple[str, ...] = ()
    """Installed drivers, such as modbus; each becomes a mapper."""
    common: dict[str, Any] = {}
    """Like the next two as in a mapper's `config.yaml`: `name` begins the mappers' names, `address` and `http_port` say
    where their HTTP API is."""
    http: dict[str, Any] = {}
    data: dict[str, Any] = {}


class Modules(Struct, frozen=True, rename="camel"):
    edged: EdgedConfig = EdgedConfig()
    edge_hub: EdgeHubConfig = EdgeHubConfig()
    meta_manager: MetaManagerConfig = MetaManagerConfig()
    device_twin: DeviceTwinConfig = DeviceTwinConfig()
    event_bus: EventBusConfig = EventBusConfig()
    service_bus: ServiceBusConfig = ServiceBusConfig()
    mappers: MappersConfig = MappersConfig()
    local_api: LocalApiConfig = LocalApiConfig()


class EdgeCoreConfig(Struct, frozen=True, rename="camel"):
    api_version: str = API_VERSION
    kind: str = KIND
    database: DatabaseConfig = DatabaseConfig()
    modules: Modules = Modules()

    @property
    def node(self) -> str:
        return self.modules.edged.hostname_override or socket.gethostname().lower()


def socket_path(config: DeviceTwinConfig) -> Path:
    directory = Path(config.dmi_sock_path)
    return (directory.parent if directory.suffix == ".sock" else directory) / SOCKET_NAME


def api_socket_path(modules: Modules) -> Path:
    return Path(modules.local_api.socket or socket_path(modules.device_twin).with_name(API_SOCKET_NAME))
