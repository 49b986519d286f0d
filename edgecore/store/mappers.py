"""Mappers that registered, and which declaration of which device each was last handed.

A mapper is known by its protocol and its name: several of one protocol share its devices, and two of different
protocols may bear the same name, as those made from upstream's template often do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from dmi import DeviceId
from dmi.ports import MapperInfo

__all__ = ["delete_handed", "delete_mapper", "handed_digests", "put_handed", "registered_mappers", "replace_mapper"]


def registered_mappers(db: sqlite3.Connection) -> list[MapperInfo]:
    rows = db.execute("SELECT name, protocol, address, version, api_version, state FROM mapper")
    return [MapperInfo(*row) for row in rows]


def replace_mapper(db: sqlite3.Connection, mapper: MapperInfo, handed: Mapping[DeviceId, bytes]) -> None:
    """The mapper of its name from now on, and what it was handed in the answer; what it had before goes."""
    delete_mapper(db, mapper)
    db.execute(
        "INSERT INTO mapper (protocol, name, address, version, api_version, state) VALUES (?, ?, ?, ?, ?, ?)",
        (mapper.protocol, mapper.name, mapper.address, mapper.version, mapper.api_version, mapper.state),
    )
    db.executemany(
        "INSERT INTO handed VALUES (?, ?, ?, ?)",
        [(mapper.protocol, mapper.name, device, digest) for device, digest in handed.items()],
    )


def delete_mapper(db: sqlite3.Connection, mapper: MapperInfo) -> None:
    key = (mapper.protocol, mapper.name)
    db.execute("DELETE FROM mapper WHERE protocol = ? AND name = ?", key)
    db.execute("DELETE FROM handed WHERE protocol = ? AND mapper = ?", key)


def handed_digests(db: sqlite3.Connection, mapper: MapperInfo) -> dict[DeviceId, bytes]:
    rows = db.execute(
        "SELECT device, digest FROM handed WHERE protocol = ? AND mapper = ?", (mapper.protocol, mapper.name)
    )
    return {DeviceId(device): digest for device, digest in rows}


def put_handed(db: sqlite3.Connection, mapper: MapperInfo, device: DeviceId, digest: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO handed VALUES (?, ?, ?, ?)", (mapper.protocol, mapper.name, device, digest))


def delete_handed(db: sqlite3.Connection, mapper: MapperInfo, device: DeviceId) -> None:
    db.execute(
        "DELETE FROM handed WHERE protocol = ? AND mapper = ? AND device = ?", (mapper.protocol, mapper.name, device)
    )
