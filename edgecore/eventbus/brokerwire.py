"""What edge core and the process of its broker say to each other; neither loads the other for it."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["BrokerAnswer", "BrokerSettings"]


class BrokerSettings(Struct, frozen=True):
    """One line of JSON on the broker's standard input."""

    host: str
    port: int
    """0: any that is free."""
    queue_size: int
    """Messages that wait for one client."""
    verbose: bool = False


class BrokerAnswer(Struct, frozen=True):
    """One line of JSON on its standard output."""

    port: int = 0
    problem: str = ""
    """Why it does not listen; then the process ends."""
