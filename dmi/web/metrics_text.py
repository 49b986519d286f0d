"""`/metrics`: everything that was counted, in Prometheus' text format."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from dmi.metrics import Counter, Metrics
from dmi.web.exposition import Family, head, label_text, sample_line
from dmi.web.process import process_figures

__all__ = ["exposition"]

logger = logging.getLogger(__name__)


def exposition(metrics: Metrics, responses: Mapping[int, int], *, api: str) -> str:
    """`responses`: answers by status of the HTTP API that this is asked of; `api`: what that family is called."""
    return "".join((*_counted(metrics), *_responses(api, responses), *_process()))


def _counted(metrics: Metrics) -> Iterator[str]:
    for entry in metrics.entries.values():
        labels, values = entry.source.labels, {}
        try:
            values = dict(entry.source.values if isinstance(entry.source, Counter) else entry.source.read())
        except Exception:  # one that cannot be read must not hide the others
            logger.exception("metric %s cannot be read", entry.name)
            continue
        if not labels:
            values.setdefault((), 0)
        yield head(Family(entry.name, entry.kind, entry.help))
        for label_values, value in sorted(values.items()):
            shown = int(value) if float(value).is_integer() else value
            yield sample_line(entry.name, label_text(dict(zip(labels, label_values, strict=False))), shown)


def _responses(api: str, responses: Mapping[int, int]) -> Iterator[str]:
    family = Family(f"{api}_responses_total", "counter", "Answers of this HTTP API.")
    yield head(family)
    for status, count in sorted(responses.items()):
        yield sample_line(family.name, label_text({"code": str(status)}), count)


def _process() -> Iterator[str]:
    for family, value in process_figures():
        yield head(family) + sample_line(family.name, "", value)
