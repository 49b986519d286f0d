"""Wires cloudcore's modules and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from cloudcore import heap
from cloudcore.audit import Audit
from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.config import CloudCoreConfig, CloudHubConfig, own_address
from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.devicecontroller.kinds import node_name
from cloudcore.edgecontroller import EdgeController, EdgeSettings
from cloudcore.joining import CredentialFiles, Joining, JoiningSettings, JoinSettings, RevocationsFirst
from cloudcore.kube import Key, KubeClient
from cloudcore.monitor import Check, Monitor, show_counts
from cloudcore.replicas import Replicas, ReplicaSettings, replica_name
from cloudcore.synccontroller import Records, SyncController
from cloudedge.loop_errors import LoopErrors
from dmi import ConfigError
from dmi.metrics import Metrics

__all__ = ["run"]

logger = logging.getLogger(__name__)

MIN_WRITERS: Final = 32


async def run(config: CloudCoreConfig, *, stop: asyncio.Event | None = None) -> None:
    """Until `stop`, SIGTERM or SIGINT; then nodes are told goodbye.

    Raises:
        ConfigError: Certificates cannot be used, or the address cannot be listened on.
        KubeConfigError: The kubeconfig cannot be used.
    """
    hub_config = config.modules.cloud_hub
    name = replica_name(hub_config.replica)
    kube = config.kube_api_config
    client = await KubeClient.open(kubeconfig=kube.kube_config, master=kube.master, qps=kube.qps, burst=kube.burst)
    own_client = await KubeClient.open(kubeconfig=kube.kube_config, master=kube.master)
    async with client, own_client:
        metrics = Metrics()
        replicas = Replicas(client, ReplicaSettings(name=name), own_client=own_client, metrics=metrics)
        records = None
        if config.modules.sync_controller.enable:
            records = Records(client, metrics=metrics, busy=lambda: controller.writer.behind > 0)
        audit = Audit(metrics)
        controller = DeviceController(
            client, _controller_settings(config), writers=replicas, records=records, metrics=metrics, audit=audit
        )
        stopping = stop or asyncio.Event()
        ready: dict[str, Check] = {}
        joining = Joining(
            client,
            _joining_settings(hub_config),
            audit=audit,
            metrics=metrics,
            unready=partial(_first_complaint, ready),
        )
        if not await _opened(joining, stopping):
            return
        edge_controller = _edge_controller(config, client, controller, records=records, audit=audit, metrics=metrics)
        hub = CloudHub(
            _hub_settings(hub_config),
            ssl_context=joining.hub_context(),
            devices=controller,
            requests=edge_controller,
            admission=joining.admission,
            owners=RevocationsFirst(replicas, joining.revocations),
            audit=audit,
            metrics=metrics,
        )
        joining.changed = hub.end_refused
        controller.queries.why_away = lambda node: joining.revocations.current.refusal(node, None) or hub.refused(node)
        ready |= _checks(config, hub=hub, controller=controller, edge_controller=edge_controller, replicas=replicas)
        _show_controller(metrics, controller)
        monitor_address = config.common_config.monitor_server.bind_address
        monitor = Monitor(monitor_address, metrics, ready=ready) if monitor_address else None
        replicas.subscribe(lost=partial(_end_session, hub), changed=controller.writer_changed)
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        _raise_open_files()
        with _signals(stopping):
            logger.info("cloudcore starts as replica %s, Kubernetes API at %s", name, client.server)
            try:
                async with asyncio.TaskGroup() as group:
                    presence = group.create_task(replicas.run(), name="replicas")
                    tasks = [group.create_task(heap.keep_small(), name="give memory back")]
                    if config.modules.device_controller.enable:
                        tasks.append(group.create_task(controller.run(), name="device controller"))
                    if edge_controller is not None:
                        tasks.append(group.create_task(edge_controller.run(), name="edge controller"))
                    if records is not None:
                        senders = [part.downstream for part in (controller, edge_controller) if part is not None]
                        sync = SyncController(
                            client, records, senders, is_leader=replicas.is_leader, owners=replicas, metrics=metrics
                        )
                        tasks.append(group.create_task(sync.run(), name="sync controller"))
                    if hub_config.enable:
                        tasks.append(group.create_task(joining.run(), name="joining"))
                    if hub_config.enable and hub_config.websocket.enable:
                        tasks.append(group.create_task(_serve(hub, hub_config), name="cloudhub"))
                    if monitor is not None:
                        tasks.append(group.create_task(monitor.run(), name="monitor"))
                    await stopping.wait()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    presence.cancel()  # last: until now others were to leave the nodes to us
            except ExceptionGroup as errors:
                raise next((e for e in errors.exceptions if isinstance(e, ConfigError)), errors) from errors
    logger.info("cloudcore stopped")


def _end_session(hub: CloudHub, node: str, by: str) -> None:
    hub.end(node, f"replica {by} has a newer connection of the node" if by else "its Lease was deleted; come again")


async def _serve(hub: CloudHub, config: CloudHubConfig) -> None:
    try:
        await hub.run()
    except OSError as error:
        address = f"{config.websocket.address}:{config.websocket.port}"
        raise ConfigError("modules.cloudHub.websocket", f"cannot listen on {address}: {error}") from error


def _edge_controller(
    config: CloudCoreConfig,
    client: KubeClient,
    devices: DeviceController,
    *,
    records: Records | None,
    audit: Audit,
    metrics: Metrics,
) -> EdgeController | None:
    if not config.modules.edge_controller.enable:
        return None
    authorization = config.modules.cloud_hub.authorization
    if not authorization.enable or authorization.debug:
        key = "debug" if authorization.enable else "enable"
        logger.warning(
            "modules.cloudHub.authorization.%s is %s: a node may read and write what is not its own",
            key,
            str(getattr(authorization, key)).lower(),
        )
    settings = EdgeSettings(
        address=own_address(),
        authorize=authorization.enable and all(mode.node.enable for mode in authorization.modes),
        audit_only=authorization.debug,
    )

    def node_of_device(key: Key) -> str:
        device = devices.devices.get(key)
        return node_name(device) if device is not None else ""

    return EdgeController(
        client, settings, node_of_device=node_of_device, records=records, audit=audit, metrics=metrics
    )


def _first_complaint(ready: Mapping[str, Check]) -> str:
    return next((f"{name}: {complaint}" for name, check in ready.items() if (complaint := check())), "")


def _checks(
    config: CloudCoreConfig,
    *,
    hub: CloudHub,
    controller: DeviceController,
    edge_controller: EdgeController | None,
    replicas: Replicas,
) -> dict[str, Check]:
    """For `/readyz`, the local one and that of the join port, which balancers ask."""
    informers = (controller.devices, controller.models, controller.statuses)
    hub_wanted = config.modules.cloud_hub.enable and config.modules.cloud_hub.websocket.enable

    def caches() -> str:
        missing = [informer.kind.plural for informer in informers if not informer.synced.is_set()]
        return f"the API has not listed {', '.join(missing)} yet" if missing else ""

    def edge_caches() -> str:
        known = edge_controller is None or edge_controller.objects.ready.is_set()
        return "" if known else "the API has not listed nodes and pods yet"

    ready: dict[str, Check] = {
        "replica": lambda: "" if replicas.status().valid else "its Lease is not renewed; is the API reachable?"
    }
    if config.modules.device_controller.enable:
        ready["caches"] = caches
    if edge_controller is not None:
        ready["edge caches"] = edge_caches
    if hub_wanted:
        ready["cloudhub"] = lambda: "" if hub.listening.is_set() else "it does not listen"
    return ready


def _show_controller(metrics: Metrics, controller: DeviceController) -> None:
    prefix = "kubetwin_cloudcore_device_"
    show_counts(metrics, prefix + "reports_refused_total", "Reports that were not taken.", lambda: controller.counts)
    show_counts(metrics, prefix + "queries_total", "Questions about devices.", lambda: controller.queries.counts)
    show_counts(
        metrics,
        prefix + "status_patches_total",
        "Writes of DeviceStatus, and reports that gave way to others.",
        lambda: {"patched": controller.writer.patches, "dropped": controller.writer.dropped},
    )
    show_counts(
        metrics,
        prefix + "mirror_patches_total",
        "Writes of what Device.status mirrors.",
        lambda: {"patched": controller.mirror.patches, "failed": controller.mirror.failed},
    )
    show_counts(
        metrics,
        prefix + "events_total",
        "Kubernetes events about devices.",
        lambda: {
            "written": controller.events.written,
            "dropped": controller.events.dropped,
            "summarised": controller.events.summarised,
        },
    )


async def _opened(joining: Joining, stopping: asyncio.Event) -> bool:
    """False: told to stop meanwhile. It may take long: on an empty machine the API server has to answer first.

    Raises:
        ConfigError: See `Joining.open`.
    """
    opening = asyncio.create_task(joining.open(), name="certificates")
    stopped = asyncio.create_task(stopping.wait(), name="stop")
    try:
        with _signals(stopping):
            await asyncio.wait([opening, stopped], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            await opening
        return opening.done()
    finally:
        opening.cancel()
        stopped.cancel()
        await asyncio.gather(opening, stopped, return_exceptions=True)


def _joining_settings(config: CloudHubConfig) -> JoiningSettings:
    https = JoinSettings(
        host=config.https.address,
        port=config.https.port,
        days=config.edge_cert_signing_duration,
        strict=config.strict_identity,
    )
    return JoiningSettings(
        files=CredentialFiles(
            ca=Path(config.tls_ca_file),
            ca_key=Path(config.tls_ca_key_file),
            server=Path(config.tls_cert_file),
            server_key=Path(config.tls_private_key_file),
        ),
        names=(*(config.advertise_address or [own_address()]), *config.dns_names),
        https=https if config.enable and config.https.enable else None,
        token_refresh_s=config.token_refresh_duration * 3600.0,
        strict=config.strict_identity,
        revoked=config.revocation_config_map,
    )


def _hub_settings(config: CloudHubConfig) -> HubSettings:
    return HubSettings(
        host=config.websocket.address,
        port=config.websocket.port,
        node_limit=config.node_limit,
        keepalive_s=float(config.keepalive_interval),
        write_timeout_s=float(config.write_timeout),
        max_message_bytes=config.max_message_bytes,
        strict_identity=config.strict_identity,
    )


def _controller_settings(config: CloudCoreConfig) -> ControllerSettings:
    return ControllerSettings(
        writers=max(MIN_WRITERS, config.modules.device_controller.load.update_device_status_workers),
        mirror_twins=config.modules.device_controller.mirror_twins,
    )


def _raise_open_files() -> None:
    """To what the system allows: each node is a socket, and the usual first limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # as good as before
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
