"""CSV files for `waveform: replay`. A manifest names the file, so only plain files below one folder are ever opened."""

from __future__ import annotations

import csv
import io
import math
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from mappers.drivers.virtual.settings import VirtualVisitor
from mappers.drivers.virtual.waveforms import Table
from mappers.sdk import ConversionError

__all__ = ["MAX_BYTES", "MAX_ROWS", "Tables"]

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_ROWS: Final = 100_000
MAX_TABLES: Final = 32
"""Kept in memory at once."""


class Tables:
    """The files of one folder, each column read once for all devices that replay it, and again when it changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[tuple[str, str, str], tuple[tuple[int, int], Table]] = {}

    def table(self, visitor: VirtualVisitor) -> Table:
        """The column a visitor names. Waits for the disk.

        Raises:
            ConversionError: There is no such plain file in the folder, it is larger than 4 MiB or 100,000 rows, it has
                no such column or no rows, or its times do not rise.
        """
        key = (visitor.file, visitor.column, visitor.time_column)
        try:
            file = _open(self._folder, visitor.file)
        except (OSError, ValueError) as error:
            raise _wrong(visitor, "file", getattr(error, "strerror", None) or repr(error)) from None
        with file:
            status = os.fstat(file.fileno())
            version = (status.st_mtime_ns, status.st_size)
            known = self._tables.get(key)
            if known is not None and known[0] == version:
                return known[1]
            try:
                table = _parse(_text(file), visitor)
            except OSError as error:
                raise _wrong(visitor, "file", error.strerror or repr(error)) from None
            except (csv.Error, UnicodeDecodeError) as error:
                raise _wrong(visitor, "file", f"is not CSV in UTF-8: {error}") from None
        if len(self._tables) >= MAX_TABLES:
            self._tables.clear()
        self._tables[key] = version, table
        return table


def _parse(text: str, visitor: VirtualVisitor) -> Table:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in next(rows, [])]
    places: list[int] = []
    for key, name in (("column", visitor.column), ("timeColumn", visitor.time_column)):
        if name and name not in header:
            shown = ", ".join(header[:20]) or "none at all"
            raise _wrong(visitor, key, f"there is no column {name!r}, but {shown}")
        places.append(header.index(name) if name else -1)
    values: list[str] = []
    times: list[float] = []
    for number, row in enumerate(rows, start=2):
        if not row:
            continue  # a blank line
        if len(values) >= MAX_ROWS:
            raise _wrong(visitor, "file", f"has more than {MAX_ROWS} rows")
        values.append(_cell(row, places[0]))
        if not visitor.time_column:
            continue
        try:
            time_s = float(_cell(row, places[1]))
        except ValueError:
            time_s = math.nan
        if not math.isfinite(time_s) or (times and time_s <= times[-1]):
            raise _wrong(visitor, "timeColumn", f"row {number}: seconds are wanted that rise from row to row")
        times.append(time_s)
    if not values:
        raise _wrong(visitor, "file", "has no rows below its header")
    return Table(values, [time_s - times[0] for time_s in times])


def _cell(row: list[str], place: int) -> str:
    return row[place].strip() if place < len(row) else ""


def _open(folder: Path, name: str) -> BinaryIO:
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise PermissionError(1, f"leads out of the replay folder {root}")
    # A pipe or a terminal must not be waited for, and what was checked must be what is read.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PermissionError(1, "is not a plain file")
    return file


def _text(file: BinaryIO) -> str:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(27, f"is larger than {MAX_BYTES // 1024 // 1024} MiB")
    return data.decode("utf-8-sig")


def _wrong(visitor: VirtualVisitor, key: str, problem: str) -> ConversionError:
    return ConversionError(f"visitors.configData.{key}: {visitor.file[:128]}: {problem}")
