"""`docs/states.md` against the code: every state, reason and event there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import yaml

from cloudcore.config import CloudHubConfig
from cloudcore.devicecontroller import conditions, events, links, queries, statuses
from cloudcore.devicecontroller.mirror import ANNOTATION
from cloudedge.queries import MAX_ANSWER_BYTES
from dmi.freshness import NOT_REPORTED
from dmi.types import DeviceState
from tests.docs.page import DOCS, blocks

PAGE = (DOCS / "states.md").read_text()
FLAT = " ".join(PAGE.split())


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = PAGE[PAGE.index(f"## {heading}\n") :]
    rows = re.search(r"^\|.*?\n\n", section, re.MULTILINE | re.DOTALL)
    assert rows is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:] if line]


def test_states_are_those_of_the_contract() -> None:
    named = {name for row in table("States") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(get_args(DeviceState))


def test_conditions_and_their_reasons_are_the_codes() -> None:
    source = Path(conditions.__file__).read_text().replace("NOT_REPORTED", f'"{NOT_REPORTED}"')
    made = set(re.findall(r'Condition\(\s*"(\w+)", "(\w+)", "(\w+)"', source))
    shown, type_ = set(), ""
    for first, status, reason, _ in table("Conditions"):
        type_ = first.strip("`") or type_
        if reason.startswith("`"):
            shown.add((type_, status, reason.strip("`")))
    assert shown == made


def test_events_are_the_codes() -> None:
    source = Path(events.__file__).read_text()
    made = set(re.findall(r'"((?:Device|Desired|Declaration)[A-Z][a-z]\w*)"', source)) - {"DeviceStatus"}
    assert {row[0].strip("`") for row in table("Events")} == made


def test_figures_are_the_codes() -> None:
    settings = events.EventSettings()
    assert f"away for more than {links.GRACE_S:g} s" in FLAT
    assert f"away after {CloudHubConfig().keepalive_interval} s of silence" in FLAT
    assert f"more than {settings.alone} devices of a node go through the same within {settings.window_s:g} s" in FLAT
    assert f"written at most every {settings.repeat_s:g} s" in FLAT
    assert f"All together are {settings.rate:g} a second at most" in FLAT
    assert f"waits up to {statuses.LAZY * statuses.PATCH_INTERVAL_S:g} s for a twin" in FLAT
    assert f"`{ANNOTATION}`" in FLAT
    adr = " ".join((DOCS / "adr/0015-questions-travel-in-the-device-status.md").read_text().split())
    asked = queries.QuerySettings()
    assert f"{asked.per_device} questions about a device, {asked.rate:g} a second in the cluster" in adr
    assert f"{MAX_ANSWER_BYTES // 1024} KiB an answer and {asked.max_bytes // 1024} KiB a device" in adr
    assert f"{asked.timeout_s:g} s for the node" in adr
    assert asked.keep_s == 60  # "after a minute"


def test_the_role_allows_what_is_done() -> None:
    (block,) = [b for b in blocks("states.md") if b.language == "yaml"]
    allowed = {
        (resource, verb)
        for rule in yaml.safe_load(block.text)["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    calls = {"events": ("create", "patch"), "devicestatuses": ("list", "watch", "get", "create", "patch", "delete")}
    calls |= {"devices": ("list", "watch", "patch"), "devicemodels": ("list", "watch")}
    assert {(resource, verb) for resource, verbs in calls.items() for verb in verbs} <= allowed
