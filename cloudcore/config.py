"""`cloudcore.yaml`: upstream's names and defaults, for the modules there are (channel contract 6.2)."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import yaml
from msgspec import Meta, Struct

from dmi import ConfigError
from dmi.settings import load_settings

__all__ = [
    "CloudCoreConfig",
    "default_config",
    "dump",
    "load_config",
    "minimal_config",
    "own_address",
    "without_effect",
]

API_VERSION: Final = "cloudcore.config.kubeedge.io/v1alpha1"
KIND: Final = "CloudCore"

Port = Annotated[int, Meta(ge=0, le=65535)]


class KubeApiConfig(Struct, frozen=True, rename="camel"):
    """Where the Kubernetes API is. With neither of the first two, the service account of the pod is used."""

    master: str = ""
    """Address of the API server; replaces the kubeconfig's."""
    kube_config: str = ""
    """Path of a kubeconfig."""
    qps: Annotated[int, Meta(ge=0)] = 2500
    """Requests a second at most; 0: no limit."""
    burst: Annotated[int, Meta(ge=1)] = 5000
    """Requests at once at most."""


class WebSocketConfig(Struct, frozen=True):
    enable: bool = True
    address: str = "0.0.0.0"  # noqa: S104 - upstream's default; nodes come from outside, with certificates
    port: Port = 10000
    """0: any free one; the log says which."""


class HttpsConfig(Struct, frozen=True):
    """Where nodes join: `/ca.crt`, `/edge.crt`, `/node/<name>`."""

    enable: bool = True
    """Upstream has the key and serves anyway."""
    address: str = "0.0.0.0"  # noqa: S104 - upstream's default; nodes come from outside, with a token
    port: Port = 10002
    """0: any free one; the log says which."""


class NodeAuthorization(Struct, frozen=True):
    enable: bool = True


class AuthorizationMode(Struct, frozen=True):
    node: NodeAuthorization = NodeAuthorization()


class AuthorizationConfig(Struct, frozen=True):
    """What a node may read and write through the channel. Upstream's default is not to look at all."""

    enable: bool = True
    debug: bool = False
    """Say what would be refused, and do it. For a cluster that is being moved."""
    modes: list[AuthorizationMode] = msgspec.field(default_factory=lambda: [AuthorizationMode()])


class CloudHubConfig(Struct, frozen=True):
    enable: bool = True
    keepalive_interval: Annotated[int, Meta(ge=1)] = msgspec.field(default=30, name="keepaliveInterval")
    """Seconds; a node without a keepalive for so long is closed."""
    write_timeout: Annotated[int, Meta(ge=1)] = msgspec.field(default=30, name="writeTimeout")
    """Seconds; a node that does not read for so long is closed. Upstream has the key and does not use it."""
    node_limit: Annotated[int, Meta(ge=1)] = msgspec.field(default=500, name="nodeLimit")
    max_message_bytes: Annotated[int, Meta(ge=64 * 1024, le=1024**3)] = msgspec.field(
        default=32 * 1024 * 1024, name="maxMessageBytes"
    )
    """A node that sends a larger message is closed. Ours; upstream has no end."""
    strict_identity: bool = msgspec.field(default=True, name="strictIdentity")
    """Whether a certificate must say `O=system:nodes, CN=system:node:<node>`, for the node it is used for, and be for
    client authentication alone. Off for clusters whose nodes carry upstream's oldest ones (`CN=kubeedge.io`). Ours."""
    edge_cert_signing_duration: Annotated[int, Meta(ge=1)] = msgspec.field(default=365, name="edgeCertSigningDuration")
    """Days."""
    token_refresh_duration: Annotated[int, Meta(ge=1)] = msgspec.field(default=12, name="tokenRefreshDuration")
    """Hours; a join token is good for twice as long."""
    revocation_config_map: str = msgspec.field(default="kubetwin-revoked", name="revocationConfigMap")
    """In namespace `kubeedge`: nodes and certificates that are not let in any more. Ours."""
    replica: str = ""
    """This process among all that serve the same nodes; another one for each, and the same after a restart. Empty: the
    host's name. Ours."""
    tls_ca_file: str = msgspec.field(default="/etc/kubeedge/ca/rootCA.crt", name="tlsCAFile")
    tls_ca_key_file: str = msgspec.field(default="/etc/kubeedge/ca/rootCA.key", name="tlsCAKeyFile")
    tls_cert_file: str = msgspec.field(default="/etc/kubeedge/certs/server.crt", name="tlsCertFile")
    tls_private_key_file: str = msgspec.field(default="/etc/kubeedge/certs/server.key", name="tlsPrivateKeyFile")
    advertise_address: list[str] = msgspec.field(default_factory=list, name="advertiseAddress")
    """Addresses that nodes dial; they go into the server certificate."""
    dns_names: list[str] = msgspec.field(default_factory=lambda: [""], name="dnsNames")
    """Names that nodes dial; they go into the server certificate."""
    websocket: WebSocketConfig = WebSocketConfig()
    https: HttpsConfig = HttpsConfig()
    authorization: AuthorizationConfig = AuthorizationConfig()


class DeviceBuffer(Struct, frozen=True, rename="camel"):
    """Upstream's queue lengths. Read so that its files load without a warning; nothing here has such queues."""

    update_device_twins: int = 1024
    update_device_status: int = 1024
    device_event: int = 1
    device_model_event: int = 1


class DeviceLoad(Struct, frozen=True, rename="camel"):
    update_device_status_workers: Annotated[int, Meta(ge=1)] = 1
    """API writes in flight. Upstream's 1 makes every device of the cluster wait for one PATCH, and its files write the
    default out, so up to 32 this is taken as 32."""


class DeviceControllerConfig(Struct, frozen=True):
    enable: bool = True
    buffer: DeviceBuffer = DeviceBuffer()
    load: DeviceLoad = DeviceLoad()
    mirror_twins: bool = msgspec.field(default=False, name="mirrorTwins")
    """Show twins and state in `Device.status` too, where readers from before KubeEdge 1.23 look for them. It costs one
    more write for each change. Ours; upstream ignores the key."""


class EdgeControllerConfig(Struct, frozen=True, rename="camel"):
    """Nodes, their Leases, and pods with what they refer to."""

    enable: bool = True
    node_update_frequency: Annotated[int, Meta(ge=1)] = 10
    """Seconds. Read so that upstream's files load; a node is told of its changes when they happen."""


class SyncControllerConfig(Struct, frozen=True, rename="camel"):
    enable: bool = True


class MonitorServer(Struct, frozen=True, rename="camel"):
    bind_address: str = "127.0.0.1:9091"
    """`/metrics`, `/healthz`, `/readyz`. Port 0: any free one; empty: nowhere."""
    enable_profiling: bool = False
    """Upstream's; there is none here."""


class CommonConfig(Struct, frozen=True, rename="camel"):
    monitor_server: MonitorServer = MonitorServer()


class Modules(Struct, frozen=True, rename="camel"):
    cloud_hub: CloudHubConfig = CloudHubConfig()
    edge_controller: EdgeControllerConfig = EdgeControllerConfig()
    sync_controller: SyncControllerConfig = SyncControllerConfig()
    device_controller: DeviceControllerConfig = DeviceControllerConfig()


class CloudCoreConfig(Struct, frozen=True, rename="camel"):
    api_version: str = API_VERSION
    kind: str = KIND
    common_config: CommonConfig = CommonConfig()
    kube_api_config: KubeApiConfig = msgspec.field(default=KubeApiConfig(), name="kubeAPIConfig")
    modules: Modules = Modules()


def load_config(file: Path) -> tuple[CloudCoreConfig, list[str]]:
    """Read a file; also returns the paths of keys that are not known here.

    Raises:
        ConfigError: It cannot be read, a value cannot be, or it is another component's.
    """
    config, unknown = load_settings(file, CloudCoreConfig)
    if config.kind != KIND:  # the version is not looked at: upstream's own chart writes another
        raise ConfigError(f"{file}: kind", f"{config.kind!r} is not {KIND}")
    return config, unknown


def without_effect(config: CloudCoreConfig) -> list[str]:
    """The paths of keys that are taken so that upstream's files load, and that somebody has set to no use."""
    pairs = (
        ("commonConfig.monitorServer", config.common_config.monitor_server, ("enable_profiling",)),
        ("modules.edgeController", config.modules.edge_controller, ("node_update_frequency",)),
        ("modules.deviceController.buffer", config.modules.device_controller.buffer, DeviceBuffer.__struct_fields__),
    )
    return [
        f"{path}.{field.encode_name}"
        for path, part, names in pairs
        for field in msgspec.structs.fields(part)
        if field.name in names and getattr(part, field.name) != field.default
    ]


def default_config() -> dict[str, Any]:
    """Everything there is, with its default. `advertiseAddress` is this machine's."""
    config: dict[str, Any] = msgspec.to_builtins(CloudCoreConfig())
    config["modules"]["cloudHub"]["advertiseAddress"] = [own_address()]
    return config


def minimal_config() -> dict[str, Any]:
    """What most people change, as upstream's `--minconfig`."""
    whole = default_config()
    hub = whole["modules"]["cloudHub"]
    return {
        "apiVersion": whole["apiVersion"],
        "kind": whole["kind"],
        "kubeAPIConfig": {key: whole["kubeAPIConfig"][key] for key in ("master", "kubeConfig")},
        "modules": {
            "cloudHub": {
                key: hub[key]
                for key in (
                    "advertiseAddress",
                    "nodeLimit",
                    "tlsCAFile",
                    "tlsCertFile",
                    "tlsPrivateKeyFile",
                    "websocket",
                )
            }
        },
    }


def dump(config: dict[str, Any]) -> str:
    """YAML that `load_config` reads back."""
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=False)


def own_address() -> str:
    """The address that other machines most likely reach this one at. Asks the routing table, sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(ipaddress.ip_address(probe.getsockname()[0]))
        except OSError:  # no network at all
            return "127.0.0.1"
