"""Prometheus' text format, version 0.0.4. prometheus_client would write it too, for 5 MB of memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

__all__ = ["CONTENT_TYPE", "Family", "Labels", "head", "histogram_lines", "label_text", "number", "sample_line"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


class Family(Struct, frozen=True):
    """A metric: its name, what it means, and how it behaves."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str


def head(family: Family) -> str:
    """The two lines above a metric's samples."""
    escaped = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {family.name} {escaped}\n# TYPE {family.name} {family.kind}\n"


def label_text(labels: Labels) -> str:
    """`{name="value",…}`, or nothing without labels."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def sample_line(name: str, labels: str, value: float) -> str:
    """One sample; `labels` as `label_text` gives them."""
    return f"{name}{labels} {number(value)}\n"


def histogram_lines(name: str, labels: Labels, bounds: Sequence[float], counts: Iterable[int], total: float) -> str:
    """A histogram. `counts` per bucket, one more than there are bounds; the format wants them added up."""
    lines: list[str] = []
    seen = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        seen += count
        lines.append(sample_line(f"{name}_bucket", label_text({**labels, "le": number(bound)}), seen))
    lines.append(sample_line(f"{name}_sum", label_text(labels), total))
    lines.append(sample_line(f"{name}_count", label_text(labels), seen))
    return "".join(lines)


def number(value: float) -> str:
    """As the format writes it: the shortest text that is the same number, `+Inf`, `-Inf` or `NaN`."""
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
