"""The figures of a replica that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable

from cloudcore.replicas.settings import ReplicaStatus
from dmi.metrics import Metrics

__all__ = ["show"]


def show(metrics: Metrics, status: Callable[[], ReplicaStatus]) -> None:
    metrics.gauge(
        "kubetwin_cloudcore_owned_nodes",
        "Nodes whose owner this replica is.",
        read=lambda: {(): float(status().owned)},
    )
    metrics.gauge(
        "kubetwin_cloudcore_leader",
        "1 where this replica leads, else 0.",
        read=lambda: {(): float(status().leads)},
    )
    metrics.gauge(
        "kubetwin_cloudcore_replicas",
        "Replicas of the cloud core that live, this one included.",
        read=lambda: {(): float(len(status().replicas))},
    )
    metrics.gauge(
        "kubetwin_cloudcore_replica_valid",
        "1 while this replica may write to the API, else 0.",
        read=lambda: {(): float(status().valid)},
    )
