"""docs/why.md shows what the command prints, and its table is the code's."""

from __future__ import annotations

import re

import msgspec
import pytest

from kubetwin.why.evidence import EdgeEnd, Evidence
from kubetwin.why.render import render
from kubetwin.why.steps import TITLES
from kubetwin.why.walk import walk
from tests.docs.page import DOCS, Block, commands, is_like
from tests.kubetwin.why_world import FACTS, NOW, edge_half, evidence, facts, with_mapper

PAGE = (DOCS / "why.md").read_text()
UNSENT = {name: msgspec.structs.replace(p, unsent=True) for name, p in FACTS.properties.items()}
GONE = "mapper modbus-mapper is gone: nobody answers at /run/m.sock, which it left behind; start it again"
KILLED = msgspec.structs.replace(
    with_mapper(answering=False, away_since_ms=NOW - 3000, trouble=GONE), state="unknown", state_reason=GONE
)
CUT_OFF = facts(
    cloud_connected=False, cloud_trouble="connection refused", cloud_since_ms=NOW - 4000, properties=UNSENT
)  # fmt: skip
EXAMPLES = {
    "mapper killed": evidence(facts=KILLED, api=msgspec.structs.replace(evidence().api, status={
        **(evidence().api.status or {}), "status": {**(evidence().api.status or {})["status"], "state": "unknown"},
    })),
    "edge cut off": edge_half(edge=EdgeEnd(facts=CUT_OFF)),
}  # fmt: skip


def test_the_table_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.+?) \|", PAGE, re.MULTILINE)
    assert rows == [(str(int(n)), str(n.exit_code), title) for n, title in TITLES.items()]


@pytest.mark.parametrize(("name", "given"), EXAMPLES.items())
def test_an_example_is_what_is_printed(name: str, given: Evidence) -> None:
    found = re.search(rf"<!-- example: {name} -->\n```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    [(command, shown)] = commands(Block("console", found[1]))
    assert command == "kubetwin why default/boiler-1"
    printed = "\n".join(render(walk(given)))
    assert is_like(shown, printed), printed
