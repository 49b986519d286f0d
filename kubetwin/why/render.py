"""A verdict as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from kubetwin.rows import age_text
from kubetwin.twin.text import safe
from kubetwin.why.steps import Step, Verdict

__all__ = ["render"]

_DAY_S = 86_400
_INDENT = " " * 12


def render(verdict: Verdict, *, wide: bool = False) -> Iterator[str]:
    """`wide`: every property at every step, not only those that are broken. Mappers and devices have no say in what
    the terminal does: their words come without control characters.
    """
    return (safe(line) for line in _lines(verdict, wide=wide))


def _lines(verdict: Verdict, *, wide: bool) -> Iterator[str]:
    yield f"{verdict.device}" + (f" on node {verdict.node}" if verdict.node else "")
    yield ""
    for step in verdict.steps:
        yield from _step(step, wide=wide)
    yield ""
    for note in verdict.notes:
        yield f"note: {note}"
    if verdict.notes:
        yield ""
    yield verdict.summary
    if verdict.todo:
        yield f"→ {verdict.todo}"


def _step(step: Step, *, wide: bool) -> Iterator[str]:
    yield _line(f"{step.number:2} {step.state:8} ", f"{step.name:19} {step.message}", step.at_ms, step.age_s)
    if step.todo:
        yield f"{_INDENT}→ {step.todo}"
    if wide:
        for detail in step.properties:
            text = f"{detail.property_name:19} {detail.state}: {detail.message}"
            yield _line(_INDENT, text, detail.at_ms, detail.age_s)
        return
    broken: dict[str, list[str]] = {}
    for detail in step.properties:
        if detail.state == "broken":
            broken.setdefault(detail.message, []).append(detail.property_name)
    if len(broken) > 1:  # one is on the step's own line
        yield from (f"{_INDENT}{', '.join(names)}: {message}" for message, names in broken.items())


def _line(start: str, text: str, at_ms: int, age_s: float | None) -> str:
    when = _when(at_ms, age_s)
    return f"{start}{text}" + (f" · {when}" if when else "")


def _when(at_ms: int, age_s: float | None) -> str:
    """Age and clock time, such as `12s ago, 07:31:02`."""
    if at_ms <= 0:
        return ""
    try:
        moment = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return "at no time there is"
    clock = moment.strftime("%H:%M:%S" if age_s is not None and age_s < _DAY_S else "%Y-%m-%d %H:%M:%S")
    return f"{age_text(age_s)} ago, {clock}" if age_s is not None else clock
