"""Mappers that registered, and which declaration of which device each was last handed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from dmi import DeviceId
from dmi.client import MapperInfo

__all__ = ["delete_handed", "handed_digests", "put_handed", "registered_mappers", "replace_mapper"]


def registered_mappers(db: sqlite3.Connection) -> list[MapperInfo]:
    rows = db.execute("SELECT name, protocol, address, version, api_version, state FROM mapper")
    return [MapperInfo(*row) for row in rows]


def replace_mapper(db: sqlite3.Connection, mapper: MapperInfo, handed: Mapping[DeviceId, bytes]) -> None:
    """The mapper of its protocol from now on, and what it was handed in the answer; what its predecessor had goes."""
    db.execute("DELETE FROM mapper WHERE protocol = ?", (mapper.protocol,))
    db.execute("DELETE FROM handed WHERE protocol = ?", (mapper.protocol,))
    db.execute(
        "INSERT INTO mapper (protocol, name, address, version, api_version, state) VALUES (?, ?, ?, ?, ?, ?)",
        (mapper.protocol, mapper.name, mapper.address, mapper.version, mapper.api_version, mapper.state),
    )
    db.executemany(
        "INSERT INTO handed VALUES (?, ?, ?)", [(mapper.protocol, device, digest) for device, digest in handed.items()]
    )


def handed_digests(db: sqlite3.Connection, protocol: str) -> dict[DeviceId, bytes]:
    rows = db.execute("SELECT device, digest FROM handed WHERE protocol = ?", (protocol,))
    return {DeviceId(device): digest for device, digest in rows}


def put_handed(db: sqlite3.Connection, protocol: str, device: DeviceId, digest: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO handed VALUES (?, ?, ?)", (protocol, device, digest))


def delete_handed(db: sqlite3.Connection, protocol: str, device: DeviceId) -> None:
    db.execute("DELETE FROM handed WHERE protocol = ? AND device = ?", (protocol, device))
