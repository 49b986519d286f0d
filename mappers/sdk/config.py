"""`config.yaml` of a mapper, with upstream's keys (DMI contract 3.1)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from dmi.settings import load_settings

__all__ = ["CommonConfig", "GrpcServerConfig", "MapperConfig", "load_config"]

logger = logging.getLogger(__name__)


class GrpcServerConfig(Struct, frozen=True):
    """Where the edge core reaches this mapper."""

    socket_path: str
    """Own unix socket. The edge core must see it under the same path. It is taken over if a dead process left it."""


class CommonConfig(Struct, frozen=True):
    """Who this mapper is, and where its edge core is."""

    name: str
    """Unique on the node: the edge core keeps mappers by name."""
    version: str = ""
    api_version: str = "v1.0.0"
    protocol: str = ""
    """Exactly the `protocolName` of its devices; empty: the driver's own name."""
    address: str = "127.0.0.1"
    """With `http_port`, where an HTTP API would listen. None is served yet; files keep the keys."""
    edgecore_sock: str = "/etc/kubeedge/dmi.sock"
    http_port: Annotated[int, Meta(ge=0, le=65535)] = 7777


class MapperConfig(Struct, frozen=True):
    """The whole file."""

    grpc_server: GrpcServerConfig
    common: CommonConfig


def load_config(path: Path) -> MapperConfig:
    """Read the file; a key no one knows is named in a warning.

    Raises:
        ConfigError: It cannot be read, is not YAML, or a value is missing or of the wrong type; the path names the file
            and the key.
    """
    config, unknown = load_settings(path, MapperConfig, strict=False)
    for key in unknown:
        logger.warning("%s: %s: no such setting, it is not used", path, key)
    return config
