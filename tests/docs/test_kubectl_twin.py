"""docs/kubectl-twin.md against the demo: every command shows what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kubetwin.plugin import main
from kubetwin.twin.options import CLUSTER_AWAY, FAILED, TIMED_OUT, USAGE
from tests.docs.page import DOCS, blocks, commands, is_like
from tests.e2e.harness import Demo, running_demo, wait_for

PAGE = "kubectl-twin.md"


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """A demo whose edge core keeps history, and whose device has what is wanted of it."""
    with running_demo() as demo:
        config = demo.directory / "edgecore.yaml"
        config.write_text(config.read_text() + "    history:\n      enable: true\n")
        demo.kill("edgecore")
        demo.restart("edgecore")
        wait_for(
            lambda: len([t for t in demo.status("boiler-1").get("twins", []) if t["reported"]["value"]]) == 7
            and demo.twin("boiler-1", "set-point")["observedDesired"]["metadata"].get("write") == "applied"
            and demo.status("boiler-1")["state"] == "online",
            within_s=40, what="boiler-1 is online, with all it has",
        )  # fmt: skip
        yield demo


@pytest.fixture(autouse=True)
def no_child_left() -> None:
    """The demo outlives a test on purpose: `running_demo` checks at its end that none is left."""


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_every_command_shows_what_the_page_shows(demo: Demo, tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path),
        "KUBECONFIG": demo.summary["kubeconfig"], "COLUMNS": "200",
    }  # fmt: skip
    count = 0
    for block in blocks(PAGE):
        for command, shown in commands(block):
            last = [""]

            def as_shown(command: str = command, shown: str = shown, last: list[str] = last) -> bool:
                done = subprocess.run(
                    ["/bin/bash", "-c", command], env=environment, check=False, timeout=60, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT if shown.startswith("Error") else subprocess.PIPE,
                )  # fmt: skip
                last[0] = done.stdout
                return is_like(shown, done.stdout)

            try:
                wait_for(as_shown, within_s=30, what=command)
            except AssertionError:
                pytest.fail(f"{command} shows\n{last[0]}\nand not\n{shown}")
            count += 1
    assert count == 8


def test_the_page_has_every_command_and_option() -> None:
    page = (DOCS / PAGE).read_text()
    context = click.Context(main)
    for name in main.list_commands(context):
        assert f"`{name}`" in page
    get = main.commands["get"]
    for option in (o for p in get.params if isinstance(p, click.Option) for o in p.opts[:1]):
        assert f"`{option}" in page or f"{option}`" in page, option


def test_the_exit_codes_of_the_page_are_the_programs() -> None:
    page = (DOCS / PAGE).read_text()
    for code, word in (
        (FAILED, "failed"),
        (USAGE, "wrong usage"),
        (CLUSTER_AWAY, "the cluster could not"),
        (TIMED_OUT, "`set --wait`"),
    ):
        assert f"| {code} | {word}" in page
