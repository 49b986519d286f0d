"""The tables of settings against the configuration classes: every key is there, with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from cloudcore.config import CloudCoreConfig
from edgecore.config import EdgeCoreConfig
from tests.docs.page import DOCS

ELSEWHERE = ("eventBus.", "mappers.", "localApi.", "deviceTwin.history.")
"""What has a page of its own."""


def leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def keys(config: CloudCoreConfig | EdgeCoreConfig) -> dict[str, Any]:
    """Every key with its default, as the page writes it: `modules` is left out."""
    found = {key.removeprefix("modules."): value for key, value in leaves(msgspec.to_builtins(config))}
    return {key: value for key, value in found.items() if key not in ("apiVersion", "kind")}


def section(page: str, heading: str) -> str:
    text: str = (DOCS / page).read_text().split(f"\n## {heading}\n")[1]
    return text.split("\n## ")[0]


def rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Of each row the keys, and the defaults that can be compared."""
    for names, default in re.findall(r"^\| (`[a-z].*?) \|(.*?)\|", text, re.MULTILINE):
        in_words = re.search(r"node's|host's|^ on $", default)
        shown = [] if in_words else [one.strip(" `") for one in default.split(",") if one.strip()]
        yield re.findall(r"`([^`]+)`", names), shown


def as_shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else "".join(value)


def wrong(config: Mapping[str, Any], text: str, prefix: str = "") -> list[str]:
    """What a table says that is not so."""
    found = []
    for names, shown in rows(text):
        for at, name in enumerate(prefix + one for one in names):
            if name not in config:
                if not any(key.startswith(f"{name}.") for key in config):
                    found.append(f"{name}: there is no such key")
            elif shown and as_shown(config[name]) != shown[min(at, len(shown) - 1)]:
                found.append(f"{name}: {shown} is {as_shown(config[name])!r}")
            elif not shown and as_shown(config[name]):
                found.append(f"{name}: nothing is {as_shown(config[name])!r}")
    return found


@pytest.mark.parametrize("config", (CloudCoreConfig(), EdgeCoreConfig()), ids=("cloudcore.yaml", "edgecore.yaml"))
def test_the_settings_of_the_channel_are_the_codes(config: CloudCoreConfig | EdgeCoreConfig) -> None:
    known, text = keys(config), section("channel.md", "Settings")
    file = "cloudcore.yaml" if isinstance(config, CloudCoreConfig) else "edgecore.yaml"
    table = text[text.index(f"| `{file}` |") + len(file) + 5 :].split("| `edgecore.yaml` |")[0]
    named = set(re.findall(r"`([a-zA-Z.]+)(?:: \w+)?`", table))
    missing = [
        key
        for key in known
        if key not in named and not key.startswith(ELSEWHERE) and key.rpartition(".")[0] not in named
    ]
    assert [key for key in missing if not key.startswith("cloudHub.authorization.")] == []
    assert wrong(known, table) == []


def test_the_settings_of_eventbus_are_the_codes() -> None:
    known, text = keys(EdgeCoreConfig()), section("mqtt.md", "Configuration")
    tables = ("eventBus.eventBusTLS.", "eventBus.enable", "eventBus.topicRules")
    unnamed = [k for k in known if k.startswith("eventBus.") and f"`{k.removeprefix('eventBus.')}`" not in text]
    assert [key for key in unnamed if not key.startswith(tables)] == []
    assert wrong(known, text, prefix="eventBus.") == []


def test_a_wrong_default_and_a_key_that_is_not_there_are_noticed() -> None:
    text = "| `cloudHub.nodeLimit`, `cloudHub.nodeLimits` | 501 | nodes at once |\n"
    assert len(wrong(keys(CloudCoreConfig()), text)) == 2
