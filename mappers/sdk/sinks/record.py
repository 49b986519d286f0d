"""What every sink is made of: records to send, where they go, who sends them, and the two ways that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from msgspec import Struct

from mappers.sdk.samples import Sample
from mappers.sdk.sinks.secrets import Secrets

__all__ = [
    "AnyRecord",
    "AnyTarget",
    "Identity",
    "Record",
    "Route",
    "Sender",
    "SinkRejected",
    "SinkStats",
    "SinkUnavailable",
    "Target",
    "size_of",
]


class Route(Struct, frozen=True):
    """What one property's push method says beyond its target, such as a topic."""


R = TypeVar("R", bound=Route)


class Record(Struct, Generic[R], frozen=True):
    """One value on its way to one sink."""

    sample: Sample
    route: R


AnyRecord = Record[Any]

_OVERHEAD_BYTES: Final = 200


def size_of(record: AnyRecord) -> int:
    """Roughly what it takes of the memory, bytes."""
    return len(record.sample.value) + _OVERHEAD_BYTES


class SinkUnavailable(Exception):
    """Nobody knows whether the target took the records; it may, later. They are kept and sent again."""


class SinkRejected(Exception):
    """The target does not want the records, and will not want them tomorrow.

    `count`: that many of the batch are unwanted, and the rest is in. None: the batch was refused as a whole; it is
    split to find the culprit.
    """

    def __init__(self, problem: str, count: int | None = None) -> None:
        super().__init__(problem)
        self.count = count


class Sender(Protocol[R]):
    """An open connection to a target."""

    async def send(self, records: Sequence[Record[R]]) -> None:
        """Deliver, in this order; returns when the target has confirmed them, as far as its protocol can.

        Raises:
            SinkUnavailable: Try again, on a new connection. Records may be there already: delivery is at least once.
            SinkRejected: Do not try again.
        """


class Identity(Struct, frozen=True):
    """Who a mapper is to its targets."""

    mapper: str
    secrets: Secrets


class Target(Struct, Generic[R], frozen=True, tag_field="sink"):
    """Where records go: one sink for each that differs. Kept in the file of waiting records, so without secrets."""

    kind: ClassVar[str]
    route_type: ClassVar[type[Route]]
    batch: ClassVar[int] = 500
    """Records in one `send`."""
    parallel: ClassVar[int] = 1
    """Calls of `send` under way on one connection; those of one route stay in order."""

    @property
    def label(self) -> str:
        """For people: log lines and metrics."""
        raise NotImplementedError

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[R]]:
        """Open a connection, as a context.

        Raises:
            SinkUnavailable: On entering: nobody there, or not allowed in.
        """
        raise NotImplementedError


AnyTarget = Target[Any]


class SinkStats(Struct, frozen=True):
    """Counters of one sink; they only grow, except those of the present. Samples unless said otherwise."""

    sink: str
    """`http`, `mqtt`, `otel`, `influxdb2`, `redis`, `tdengine` or `mysql`."""
    target: str
    """Address and what else tells targets of one kind apart; no secrets."""
    up: bool
    """The last attempt to reach it succeeded, or none was made."""
    problem: str
    """Why not `up`."""
    sent: int
    """Confirmed by the target."""
    failed: int
    """Attempts to connect or send that failed; their samples wait."""
    dropped: Mapping[str, int]
    """Samples lost, by reason: `size`, `age`, `rejected`, `memory`, `damaged`."""
    waiting: int
    """On disk and in memory, those of the present."""
    lag_s: float
    """Age of the oldest that waits; 0 when none does."""
    file: str
    """Where they wait; empty while nothing is on disk."""
