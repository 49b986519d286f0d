"""Cells of `kubectl get`: ages as people read them, and columns made from JSONPath.

Reference: k8s.io/apimachinery/pkg/util/duration (`HumanDuration`); apiextensions-apiserver's table converter.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kubetwin.apiserver.items import JsonObject, encode
from kubetwin.apiserver.jsonpath import compile_path
from kubetwin.apiserver.kinds import Column


def human_duration(seconds: float) -> str:
    """A duration with two leading units at most: 45s, 3m20s, 17m, 5h3m, 30h, 6d4h, 300d, 3y20d."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    if total < 0:
        return "0s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if minutes < 2:
        return f"{total}s"
    if minutes < 10:
        return _two(minutes, "m", total % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    years = days // 365
    return _two(years, "y", days % 365, "d") if days < 8 * 365 else f"{years}y"


def _two(major: int, major_unit: str, minor: int, minor_unit: str) -> str:
    return f"{major}{major_unit}{minor}{minor_unit}" if minor else f"{major}{major_unit}"


def age_of(stamp: object) -> str:
    """How long ago an RFC 3339 time was, `<unknown>` when there is none or it is none."""
    if not isinstance(stamp, str) or not stamp:
        return "<unknown>"
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return "<unknown>"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return human_duration((datetime.now(UTC) - then).total_seconds())


def age(obj: JsonObject) -> str:
    """The AGE cell."""
    return age_of(obj["metadata"].get("creationTimestamp"))


NAME = Column(
    "Name", format="name", description="Name must be unique within a namespace.", value=lambda o: o["metadata"]["name"]
)
AGE = Column("Age", "date", "Time since the object was created.", value=age)


def path_column(name: str, type_: str, path: str, *, description: str, format_: str, priority: int) -> Column:
    """A column from a CustomResourceDefinition's `additionalPrinterColumns`.

    Raises:
        ValueError: The JSONPath is not understood.
    """
    find = compile_path(path)

    def value(obj: JsonObject) -> Any:
        found = find(obj)
        return _cell(type_, found[0]) if found else None

    # A date is sent as text already made readable, as kube-apiserver does; kubectl prints it as it is.
    return Column(name, type_, description, format_, priority, value)


def _cell(type_: str, value: Any) -> Any:
    match type_:
        case "integer":
            return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "number":
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "date":
            return age_of(value)
    if isinstance(value, str):
        return value
    return encode(value).decode()  # lists and maps as JSON, numbers and booleans as such
