"""What can be asked of the hub at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from cloudcore.cloudhub.outbox import Outbox
from cloudcore.cloudhub.session import Session
from cloudedge.listening import Listener
from dmi.metrics import Metrics

__all__ = ["show"]

UPSTREAM_NODES = "KubeEdge_CloudHub_connected_nodes"
"""Upstream's one metric, for dashboards that are there already."""


def show(
    metrics: Metrics,
    *,
    sessions: Mapping[str, Session],
    waiting: Collection[str],
    listener: Callable[[], Listener | None],
) -> None:
    """Make the gauges of a hub."""

    def total(read: Callable[[Outbox], float]) -> float:
        return sum(read(outbox) for session in sessions.values() if (outbox := session.made_outbox) is not None)

    def oldest() -> float:
        now = asyncio.get_running_loop().time()
        outboxes = [session.made_outbox for session in sessions.values()]
        return max((outbox.oldest_s(now) for outbox in outboxes if outbox is not None), default=0.0)

    def gauge(name: str, help_: str, read: Callable[[], float]) -> None:
        metrics.gauge(name, help_, read=lambda: {(): read()})

    prefix = "kubetwin_cloudcore_"
    gauge(UPSTREAM_NODES, "Nodes with a session at this cloud core.", lambda: len(sessions))
    gauge(prefix + "nodes", "Nodes with a session at this cloud core.", lambda: len(sessions))
    gauge(prefix + "nodes_waiting", "Connected nodes that this cloud core does not own yet.", lambda: len(waiting))
    gauge(prefix + "outbox_messages", "Messages that wait for nodes or are in flight.", lambda: total(len))
    gauge(
        prefix + "outbox_bytes",
        "About what they hold, with 1 KiB for each.",
        lambda: total(lambda outbox: outbox.held_bytes),
    )
    gauge(prefix + "in_flight", "Messages that nodes have not acknowledged.", lambda: total(lambda o: o.in_flight))
    gauge(prefix + "oldest_unacknowledged_seconds", "Since the one sent longest ago was sent.", oldest)
    gauge(
        prefix + "upgrading",
        "Clients of the channel's port between TCP and upgrade.",
        lambda: taken.upgrading if (taken := listener()) is not None else 0,
    )

    def refused() -> Mapping[tuple[str, ...], float]:
        taken = listener()
        return {} if taken is None else {(why,): count for why, count in taken.refused.items()}

    def traffic(name: str) -> Callable[[], Mapping[tuple[str, ...], float]]:
        return lambda: {(): getattr(taken.traffic, name) if (taken := listener()) is not None else 0}

    metrics.counted(
        prefix + "clients_refused_total", "Clients that did not come as far as an upgrade.", "reason", read=refused
    )
    for name, attribute, help_ in (
        ("channel_received_bytes_total", "received_bytes", "Payloads from nodes."),
        ("channel_sent_bytes_total", "sent_bytes", "Payloads to nodes."),
        ("malformed_messages_total", "malformed", "Messages of nodes that were no envelopes."),
        ("oversized_messages_total", "too_big", "Messages over the cap; the node was closed."),
        ("broken_frames_total", "broken", "Frames against RFC 6455; the node was closed."),
        ("unanswered_pings_total", "unanswered", "Pings of nodes that do not read the answers."),
    ):
        metrics.counted(prefix + name, help_, read=traffic(attribute))
