"""Wires cloudcore's modules and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.config import CloudCoreConfig, CloudHubConfig
from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.kube import KubeClient
from cloudedge import tls
from dmi import ConfigError

__all__ = ["run"]

logger = logging.getLogger(__name__)

MIN_WRITERS: Final = 32
MAX_NAMED_HOSTS: Final = 1024


async def run(config: CloudCoreConfig, *, stop: asyncio.Event | None = None) -> None:
    """Until `stop`, SIGTERM or SIGINT; then nodes are told goodbye.

    Raises:
        ConfigError: Certificates cannot be used, or the address cannot be listened on.
        KubeConfigError: The kubeconfig cannot be used.
    """
    hub_config = config.modules.cloud_hub
    context = _tls_context(hub_config)
    kube = config.kube_api_config
    client = await KubeClient.open(kubeconfig=kube.kube_config, master=kube.master, qps=kube.qps, burst=kube.burst)
    async with client:
        controller = DeviceController(client, _controller_settings(config))
        hub = CloudHub(_hub_settings(hub_config), ssl_context=context, handler=controller)
        stopping = stop or asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(_LoopErrors())
        with _signals(stopping):
            logger.info("cloudcore starts, Kubernetes API at %s", client.server)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = []
                    if config.modules.device_controller.enable:
                        tasks.append(group.create_task(controller.run(), name="device controller"))
                    if hub_config.enable and hub_config.websocket.enable:
                        tasks.append(group.create_task(_serve(hub, hub_config), name="cloudhub"))
                    await stopping.wait()
                    for task in tasks:
                        task.cancel()
            except ExceptionGroup as errors:
                raise next((e for e in errors.exceptions if isinstance(e, ConfigError)), errors) from errors
    logger.info("cloudcore stopped")


class _LoopErrors:
    """The loop's exception handler: a peer that breaks off the TLS handshake (a port scan, a node with another CA) is a
    line, once per host. picows' transport hands over the exception's class there, which asyncio's own cannot print.
    """

    def __init__(self) -> None:
        self._hosts: set[str] = set()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, type):
            loop.default_exception_handler(context)
            return
        host = str((context["transport"].get_extra_info("peername") or ["?"])[0])
        if host not in self._hosts and len(self._hosts) < MAX_NAMED_HOSTS:
            self._hosts.add(host)
            logger.warning("%s from %s: %s; does it trust this cloud's CA?", context["message"], host, error.__name__)


async def _serve(hub: CloudHub, config: CloudHubConfig) -> None:
    try:
        await hub.run()
    except OSError as error:
        address = f"{config.websocket.address}:{config.websocket.port}"
        raise ConfigError("modules.cloudHub.websocket", f"cannot listen on {address}: {error}") from error


def _tls_context(config: CloudHubConfig) -> ssl.SSLContext:
    try:
        return tls.server_context(
            ca_file=Path(config.tls_ca_file),
            cert_file=Path(config.tls_cert_file),
            key_file=Path(config.tls_private_key_file),
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "modules.cloudHub",
            f"tlsCAFile {config.tls_ca_file}, tlsCertFile {config.tls_cert_file} and tlsPrivateKeyFile "
            f"{config.tls_private_key_file} cannot be used: {error}",
        ) from error


def _hub_settings(config: CloudHubConfig) -> HubSettings:
    return HubSettings(
        host=config.websocket.address,
        port=config.websocket.port,
        node_limit=config.node_limit,
        keepalive_s=float(config.keepalive_interval),
        write_timeout_s=float(config.write_timeout),
    )


def _controller_settings(config: CloudCoreConfig) -> ControllerSettings:
    return ControllerSettings(
        writers=max(MIN_WRITERS, config.modules.device_controller.load.update_device_status_workers),
        mirror_twins=config.modules.device_controller.mirror_twins,
    )


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop` inside the block."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
