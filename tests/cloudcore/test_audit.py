"""What is said of refusals: enough to find who it is, and no more than a log can take."""

import json

import pytest

from cloudcore.audit import MAX_LINES, REPEAT_S, Audit
from dmi.metrics import Metrics


def test_who_insists_gets_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    audit = Audit(clock=lambda: now)
    for _ in range(3):
        audit.refused("another node", node="edge-1", resource="node/edge-2")
    audit.refused("another node", node="edge-2")
    now = REPEAT_S
    audit.refused("another node", node="edge-1")
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["node"], line.get("more_since_last")) for line in lines] == [
        ("edge-1", None),
        ("edge-2", None),
        ("edge-1", 2),
    ]


def test_ever_new_names_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now, metrics = 0.0, Metrics()
    audit = Audit(metrics, clock=lambda: now)
    for number in range(MAX_LINES + 500):
        audit.refused("certificate", node=f"edge-{number}")
    assert len(caplog.records) == MAX_LINES
    now = REPEAT_S
    audit.refused("certificate", node="edge-0")
    assert [json.loads(record.getMessage()) for record in caplog.records[MAX_LINES:]] == [
        {"refused": "more than is said", "lines": 500},
        {"refused": "certificate", "node": "edge-0", "resource": "", "operation": ""},
    ]
    assert metrics.counter("kubetwin_cloudcore_refused_total", "", "reason").total() == MAX_LINES + 501
