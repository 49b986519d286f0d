"""What `edgecore.yaml` can say: upstream's keys and defaults for the modules that are here (channel contract 6.3).

Upstream's times are whole seconds. Reading the file is `edgecore.configfile`'s work, so that YAML is not in
the memory of the process that runs.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Final

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
    "MappersConfig",
    "MetaManagerConfig",
    "Modules",
    "QuicConfig",
    "ServiceBusConfig",
    "WebSocketConfig",
    "socket_path",
]

API_VERSION: Final = "edgecore.config.kubeedge.io/v1alpha2"
KIND: Final = "EdgeCore"
SOCKET_NAME: Final = "dmi.sock"

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class DatabaseConfig(Struct, frozen=True, rename="camel"):
    driver_name: str = "sqlite3"
    """Only sqlite3 there is."""
    alias_name: str = "default"
    data_source: str = "/var/lib/kubeedge/edgecore.db"


class EdgedConfig(Struct, frozen=True, rename="camel"):
    hostname_override: str = ""
    """The node's name. Empty: the host's name, in lower case."""


class WebSocketConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True
    server: str = "127.0.0.1:10000"
    """`host:port` of CloudHub; the host must be in its certificate."""
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
    websocket: WebSocketConfig = WebSocketConfig()
    quic: QuicConfig = QuicConfig()


class MetaManagerConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True


class DeviceTwinConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True
    dmi_sock_path: str = "/etc/kubeedge/"
    """Directory of `dmi.sock`. A path that ends in `.sock`, as old files have it, counts as its directory."""


class EventBusConfig(Struct, frozen=True, rename="camel"):
    enable: bool = False
    """Upstream's default is true; here it is not there yet."""


class ServiceBusConfig(Struct, frozen=True, rename="camel"):
    enable: bool = False


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
