"""`config.yaml` of a mapper: upstream's keys (DMI contract 3.1) in `grpc_server` and `common`, our own beside them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from msgspec import Meta, Struct

__all__ = [
    "CommonConfig",
    "DataConfig",
    "GrpcServerConfig",
    "HttpConfig",
    "LogConfig",
    "MapperConfig",
    "data_folder",
    "load_config",
]

logger = logging.getLogger(__name__)


class GrpcServerConfig(Struct, frozen=True):
    """Where the edge core reaches this mapper."""

    socket_path: str
    """Own unix socket. The edge core must see it under the same path. It is taken over if a dead process left it;
    one that is served is refused."""


class CommonConfig(Struct, frozen=True):
    """Who this mapper is, and where its edge core is."""

    name: str
    """Unique on the node: the edge core keeps mappers by name."""
    version: str = ""
    api_version: str = "v1.0.0"
    protocol: str = ""
    """Exactly the `protocolName` of its devices; empty: the driver's own name."""
    address: str = "127.0.0.1"
    """With `http_port`, where the HTTP API, `/metrics` and `/healthz` are served."""
    edgecore_sock: str = "/etc/kubeedge/dmi.sock"
    http_port: Annotated[int, Meta(ge=0, le=65535)] = 7777


class HttpConfig(Struct, frozen=True):
    """Who may use the HTTP API: on loopback everyone, elsewhere who has the token or a certificate."""

    enabled: bool = True
    token_file: str = ""
    """File with the bearer token that is asked for."""
    cert_file: str = ""
    key_file: str = ""
    """With `cert_file`: serve HTTPS."""
    client_ca_file: str = ""
    """Ask for a client certificate that this CA signed."""


class DataConfig(Struct, frozen=True):
    """The data plane: where samples wait while a sink is away, and how much of them."""

    dir: str = ""
    """Folder of the waiting samples, made with mode 0700. Empty: `<name>-data` beside the mapper's own socket."""
    max_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    """Megabytes on disk, each sink; past that the oldest samples are dropped and counted."""
    max_age_s: Annotated[float, Meta(gt=0, le=1e9)] = 7 * 24 * 3600.0
    """Samples that waited longer are dropped and counted."""
    secrets_dir: str = ""
    """Folder with one file per secret (`TOKEN`, `USERNAME`, `PASSWORD`), as Kubernetes mounts one; what is not there
    is taken from the environment."""


class LogConfig(Struct, frozen=True):
    """On standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MapperConfig(Struct, frozen=True):
    """The whole file."""

    grpc_server: GrpcServerConfig
    common: CommonConfig
    http: HttpConfig = HttpConfig()
    data: DataConfig = DataConfig()
    log: LogConfig = LogConfig()


def load_config(path: Path) -> MapperConfig:
    """Read the file; a key no one knows is named in a warning.

    Raises:
        ConfigError: It cannot be read, is not YAML, or a value is missing or of the wrong type; the path names the file
            and the key.
    """
    from dmi.settings import load_settings  # YAML, 1.4 MB that a running mapper does not need

    config, unknown = load_settings(path, MapperConfig, strict=False)
    for key in unknown:
        logger.warning("%s: %s: no such setting, it is not used", path, key)
    return config


def data_folder(config: DataConfig, mapper: str, socket: str | Path) -> Path:
    """Where samples wait: `dir` holds a folder per mapper; without it `<mapper>-data` is beside the mapper's socket."""
    name = quote(mapper, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    return Path(config.dir) / name if config.dir else Path(socket).parent / f"{name}-data"
