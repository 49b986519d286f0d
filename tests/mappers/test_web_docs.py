"""The page on the HTTP API: every curl line does what the page shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import trustme

from mappers.sdk.config import HttpConfig
from mappers.sdk.watchdog import watch_loop
from mappers.sdk.web import WebServer
from tests.docs.page import DOCS, blocks, commands, is_like
from tests.mappers.sink_world import program
from tests.mappers.web_world import CountedSinks, MemoryMapper, in_thread, served

PAGE = "http-api.md"
pytestmark = pytest.mark.programs


@pytest.fixture(autouse=True)
def _curl() -> None:
    program("curl")


async def type_in(command: str, server: WebServer, directory: Path) -> str:
    assert command.startswith("curl ")
    line = command.replace("curl ", "curl -sS ", 1).replace(":7777", f":{server.port}")
    done = await in_thread(
        lambda: subprocess.run(  # the commands of our own page
            line, shell=True, check=True, capture_output=True, text=True, timeout=30, cwd=directory
        )
    )
    return done.stdout


async def test_every_command_shows_what_the_page_says(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert = ca.issue_cert("localhost")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "token").write_text("a-token-of-the-page")
    secured = HttpConfig(
        token_file=str(tmp_path / "token"), cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem")
    )
    ran = 0
    async with served(MemoryMapper()) as plain, served(MemoryMapper(), address="localhost", http=secured) as other:
        for block in blocks(PAGE):
            assert block.language == "console"
            for command, shown in commands(block):
                output = await type_in(command, other if block.terminal == "secured" else plain, tmp_path)
                assert is_like(shown, output), f"{command}\n{output}"
                ran += 1
    assert ran > 12


async def test_every_metric_is_on_the_page_and_the_other_way_round(tmp_path: Path) -> None:
    async with watch_loop([]) as watchdog, served(MemoryMapper(samples=CountedSinks()), watchdog=watchdog) as server:
        text = await type_in("curl http://127.0.0.1:7777/metrics", server, tmp_path)
    page = (DOCS / PAGE).read_text()
    named = {f"kubetwin_mapper{rest}" for rest in re.findall(r"(?:kubetwin_mapper|…)(_[a-z_]+)", page)}
    named |= set(re.findall(r"process_[a-z_]+", page))
    served_names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert served_names == named
