"""Reads and prints `edgecore.yaml`.

A key that is not here is named in a warning and otherwise left alone, so that a stock file loads.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import yaml

from dmi import ConfigError
from dmi.settings import load_settings
from edgecore.config import API_VERSION, KIND, EdgeCoreConfig, api_socket_path, socket_path
from edgecore.edged import duration_s
from edgecore.eventbus.settings import check_event_bus

__all__ = ["is_host_and_port", "load_config", "to_yaml"]

logger = logging.getLogger(__name__)


def load_config(file: Path) -> EdgeCoreConfig:
    """Read and check a file; what it asks for and is not there is said in the log.

    Raises:
        ConfigError: It cannot be read, or a value cannot work; the path says which.
    """
    config, unknown = load_settings(file, EdgeCoreConfig)
    _check(config, str(file))
    if unknown:
        logger.warning("%s: keys that are not used here: %s", file, ", ".join(unknown))
    later = [name for name, enabled in (("serviceBus", config.modules.service_bus.enable),) if enabled]
    if later:
        logger.info("%s: enabled, but not available yet: %s", file, ", ".join(later))
    return config


def to_yaml(config: EdgeCoreConfig, *, minimal: bool = False) -> str:
    """A file that `load_config` reads back; `minimal`: only what one has to look at."""
    data = msgspec.to_builtins(config)
    if minimal:
        hub = data["modules"]["edgeHub"]
        keys = ("heartbeat", "httpServer", "token", "tlsCaFile", "tlsCertFile", "tlsPrivateKeyFile")
        data["database"] = {"dataSource": data["database"]["dataSource"]}
        data["modules"] = {
            "edged": {"hostnameOverride": config.node},
            "edgeHub": {**{key: hub[key] for key in keys}, "websocket": {"server": hub["websocket"]["server"]}},
            "deviceTwin": {"dmiSockPath": data["modules"]["deviceTwin"]["dmiSockPath"]},
        }
    return yaml.safe_dump(data, sort_keys=False)


def _check(config: EdgeCoreConfig, where: str) -> None:
    """What a type cannot say.

    Raises:
        ConfigError: With the path of the value.
    """
    if config.api_version != API_VERSION or config.kind != KIND:
        raise ConfigError(
            where, f"apiVersion {config.api_version!r} and kind {config.kind!r} are not {API_VERSION} {KIND}"
        )
    if config.database.driver_name != "sqlite3":
        raise ConfigError(f"{where}: database.driverName", f"{config.database.driver_name!r} is not sqlite3")
    hub = config.modules.edge_hub
    if hub.quic.enable or not hub.websocket.enable:
        raise ConfigError(f"{where}: modules.edgeHub.websocket.enable", "QUIC is not available: enable websocket only")
    servers = [server for part in hub.websocket.server.split(",") if (server := part.strip())]
    for server in servers or [hub.websocket.server]:
        if not is_host_and_port(server):
            raise ConfigError(f"{where}: modules.edgeHub.websocket.server", f"{server!r} is not of the form host:port")
    check_event_bus(config.modules.event_bus, f"{where}: modules.eventBus")
    history, local_api = config.modules.device_twin.history, config.modules.local_api
    if history.enable and history.data_source and Path(history.data_source) == Path(config.database.data_source):
        raise ConfigError(
            f"{where}: modules.deviceTwin.history.dataSource", "the database is there: choose another file"
        )
    if local_api.enable and api_socket_path(config.modules) == socket_path(config.modules.device_twin):
        raise ConfigError(f"{where}: modules.localApi.socket", "mappers are served there: choose another file")
    try:
        duration_s(config.modules.edged.tailored_kubelet_config.node_status_update_frequency)
    except ValueError as error:
        key = "modules.edged.tailoredKubeletConfig.nodeStatusUpdateFrequency"
        raise ConfigError(f"{where}: {key}", str(error)) from error
    node = config.node
    if not node or "/" in node or node != node.strip():
        raise ConfigError(f"{where}: modules.edged.hostnameOverride", f"{node!r} is no node name")
    for name, enabled in (
        ("edgeHub", hub.enable),
        ("metaManager", config.modules.meta_manager.enable),
        ("deviceTwin", config.modules.device_twin.enable),
    ):
        if not enabled:
            raise ConfigError(f"{where}: modules.{name}.enable", "the module cannot be left out")


def is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
