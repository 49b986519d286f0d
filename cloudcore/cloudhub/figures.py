"""What the hub counts, and where it shows."""

from __future__ import annotations

from typing import Final

from cloudedge import Message
from dmi.metrics import Metrics

__all__ = ["Figures", "kind_of"]

_KINDS: Final = frozenset({"keepalive", "response", "error", "upload"})
_SOURCES: Final = {"twin": "twin", "edged": "request", "metamanager": "request", "metaserver": "metaserver"}


class Figures:
    """Labels are from fixed sets: nodes choose none of them."""

    def __init__(self, metrics: Metrics) -> None:
        prefix = "kubetwin_cloudcore_"
        self.refused = metrics.counter(
            prefix + "connections_refused_total", "Connections of nodes that were not let in.", "reason"
        )
        self.ended = metrics.counter(prefix + "sessions_ended_total", "Sessions of nodes that ended.", "reason")
        self.takeovers = metrics.counter(
            prefix + "takeovers_total", "Sessions that a newer connection of the node took the place of."
        )
        self.received = metrics.counter(prefix + "messages_received_total", "Messages of nodes.", "kind")
        self.sent = metrics.counter(prefix + "messages_sent_total", "Messages to nodes, repeated ones too.", "delivery")
        self.dropped = metrics.counter(
            prefix + "messages_dropped_total", "Messages of nodes that nothing was done about, and to nodes.", "reason"
        )
        self.resent = metrics.counter(prefix + "resends_total", "Messages sent again for want of an acknowledgement.")
        self.superseded = metrics.counter(
            prefix + "superseded_total", "Messages to nodes that were not sent, or not again, for a newer one."
        )
        self.acknowledged = metrics.counter(prefix + "acknowledged_total", "Messages that nodes have acknowledged.")
        self.lag = metrics.counter(
            prefix + "acknowledgement_seconds_total", "From sending those to their acknowledgement, added up."
        )


def kind_of(message: Message) -> str:
    """What counts as a kind of message of a node."""
    route = message.route
    return route.operation if route.operation in _KINDS else _SOURCES.get(route.source, "other")
