"""Where the API server is and how to log in: a kubeconfig when one is named, else the pod's service account."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from cloudcore.kube.errors import KubeConfigError

__all__ = ["load_configuration"]

# The library's loaders have no annotations.
_load_in_cluster: Final[Any] = load_incluster_config
_load_file: Final[Any] = load_kube_config


MAX_CONNECTIONS: Final = 64
"""To the API server; a dozen are watches. Each takes 300 KiB with TLS, and the library's 100 would all be opened."""


async def load_configuration(*, kubeconfig: str = "", master: str = "") -> Any:
    """The client library's configuration. `master`, when given, replaces the server's address, as upstream.

    In a cluster the library re-reads the rotated token file every minute by itself.

    Raises:
        KubeConfigError: The file is missing or no kubeconfig, or there is none and this is no pod.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    if kubeconfig:
        await _from_file(Path(kubeconfig).expanduser(), configuration)
    elif not master:
        try:
            _load_in_cluster(client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise KubeConfigError(
                f"no kubeConfig is set and this is not a pod ({error}): set kubeAPIConfig.kubeConfig"
            ) from error
    if master:
        configuration.host = master
    host = urllib.parse.urlsplit(configuration.host).hostname or ""
    if host in ("127.0.0.1", "::1", "localhost"):  # a proxy from the environment is never meant for these
        configuration.client_session_kwargs = {"trust_env": False}
    return configuration


async def _from_file(file: Path, configuration: Any) -> None:
    if not file.is_file():
        raise KubeConfigError(f"kubeconfig {file} is not there: set kubeAPIConfig.kubeConfig to a file that is")
    try:
        await _load_file(config_file=str(file), client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KubeConfigError(f"kubeconfig {file} cannot be used: {error}") from error
