"""Which mapper runs which device when a protocol has several. Pure.

Rendezvous hashing: every device ranks the mappers of its protocol by a hash of both names, and the first one that lives
has it. One that joins or leaves moves its own share only, and each edge core comes to the same answer without talking.

A device is never taken from a mapper before its successor answers, and never given to one before its holder has let go
or is taken for dead; between the two it is run by nobody for as long as two calls take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from msgspec import Struct

from dmi import DeviceId

__all__ = ["MOVE_GRACE_S", "Claim", "Member", "claim_of", "owner_of"]

MOVE_GRACE_S: Final = 5.0
"""How long a mapper may be away before its devices move to others of its protocol. A restart takes one to three seconds
on a small gateway, and should move nothing."""

Claim = Literal["run", "keep", "drop"]
"""What a mapper is to do with a device: run it as declared, stay as it is for now, or let it go."""


class Member(Struct, frozen=True):
    """One mapper of the protocol, as far as a device is concerned."""

    name: str
    answering: bool
    alive: bool
    """Answering, or away for no longer than the grace."""
    holds: bool
    """It has the device, or may have it."""
    runs: bool = False
    """What it has, it runs, as far as anybody can tell, although it does not answer: it reports, or was told a moment
    ago in the answer to its registration and not called since."""


def owner_of(device: DeviceId, names: Iterable[str]) -> str | None:
    """The mapper among these that the device ranks first; None: there is none."""
    candidates = tuple(names)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    return max(candidates, key=lambda name: (_rank(device, name), name))


def claim_of(device: DeviceId, name: str, members: Sequence[Member], *, pinned: str = "") -> Claim:
    """What mapper `name` is to do with the device. `pinned`: the only mapper that may run it."""
    owner = pinned or owner_of(device, live_names(members))
    if owner == name:
        in_use = any(m.holds and (m.answering or m.runs) for m in members if m.name != name)
        return "keep" if in_use else "run"
    holds = any(m.holds for m in members if m.name == name)
    away = any(not m.answering for m in members if m.name == owner)
    return "keep" if holds and away else "drop"


def live_names(members: Iterable[Member]) -> list[str]:
    """Who shares the devices: those alive, or everyone while nobody is."""
    members = tuple(members)
    return [m.name for m in members if m.alive] or [m.name for m in members]


def _rank(device: DeviceId, name: str) -> bytes:
    return hashlib.blake2b(f"{name}\n{device}".encode(), digest_size=8).digest()
