"""What a replica is called and how it keeps time, and what it says of itself."""

from __future__ import annotations

import re
import socket
from typing import Final

from msgspec import Struct

from cloudedge.tls import NODE_NAME
from dmi import ConfigError

__all__ = ["ReplicaSettings", "ReplicaStatus", "replica_name"]

MAX_NAME_CHARACTERS: Final = 200


class ReplicaSettings(Struct, frozen=True):
    name: str
    """This process among all that serve the same nodes, and the same after a restart."""
    renew_s: float = 3.0
    lease_s: float = 10.0
    """A replica that was not seen to renew its Lease for so long is dead."""
    look_s: float = 0.5
    """How often it is looked at who has died."""
    forget_s: float = 3600.0
    """A Lease of a replica that was not renewed for so long is removed: names of pods do not come back."""


class ReplicaStatus(Struct, frozen=True):
    """For those who ask whether this process works."""

    name: str
    valid: bool
    """Whether it may write: its Lease is fresh, and it knows what others have taken over."""
    leader: str
    """Who leads, as far as is known here; empty: nobody."""
    leads: bool
    """Whether it is this one, and it may write."""
    owned: int
    """Nodes whose owner this replica is, connected or not."""
    replicas: tuple[str, ...]
    """Who lives, this one included."""


def replica_name(configured: str) -> str:
    """What a replica is called: as configured, else the host's name.

    Raises:
        ConfigError: It cannot be part of a Lease's name.
    """
    name = configured or re.sub(r"[^-a-z0-9.]", "-", socket.gethostname().lower()).strip("-.")
    if len(name) > MAX_NAME_CHARACTERS or not NODE_NAME.fullmatch(name):  # a Lease is named as a node is
        raise ConfigError(
            "modules.cloudHub.replica",
            f"{name!r} is not up to {MAX_NAME_CHARACTERS} small letters, digits, '-' and '.', with a letter or digit "
            "at either end and beside each '.'",
        )
    return name
