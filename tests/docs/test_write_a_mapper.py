"""The page "Write a mapper in ten minutes", command by command, in a clean folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kubetwin.mapper_project import Answers, create
from tests.docs.page import blocks, commands, is_like
from tests.e2e.harness import wait_for

PAGE = "write-a-mapper.md"
REPOSITORY = Path(__file__).parent.parent.parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Reader:
    """Somebody who types what the page says. One shell is kept for what the terminals have in common: folder and
    environment. `elsewhere` replaces what the page has for one reader alone on a machine: its folder and ports."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(2)
        self.elsewhere = {
            "/tmp/demo": str(directory / "demo"),
            "../mapper-venv": str(directory / "mapper-venv"),  # beside a checkout, which `..` of a link is not
            "4059": str(ports[0]),
            "7780": str(ports[1]),
        }
        self.directory = directory
        self.state = directory / "state.sh"
        checkout = directory / "checkout"
        checkout.symlink_to(REPOSITORY)
        # -L: the page's "cd .." leads out of the link, into the clean folder.
        self.state.write_text(f"cd -L {checkout}\n")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> Mapping[str, str]:
        """Libraries are those of this environment; pip installs what it is named, and looks for nothing elsewhere."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "PYTEST_", "KUBE"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the option's value: 0 is "no isolation"
            "PIP_IGNORE_INSTALLED": "1",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "COLUMNS": "200",
        }

    def moved(self, text: str) -> str:
        for here, there in self.elsewhere.items():
            text = text.replace(here, there)
        return text

    def type(self, text: str) -> str:
        """Run in the first terminal, as often as a shell session goes on; standard output."""
        keep = f"{{ export -p; pwd | sed 's/^/cd -L /'; }} > {self.state}"
        script = f". {self.state}\nset -euo pipefail\n{self.moved(text)}\nset +u\n{keep}\n"
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            env=dict(self.environment), cwd=self.directory, check=False, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        self.move_project()
        return done.stdout

    def move_project(self) -> None:
        """The generated project holds the same folder and ports as the page."""
        project = self.directory / "acme-meter"
        for name in ("config.yaml", "manifests/device.yaml", "acme_meter/simulator.py"):
            file = project / name
            if file.exists() and file.read_text() != self.moved(file.read_text()):
                file.write_text(self.moved(file.read_text()))

    def open_terminal(self, name: str, text: str) -> None:
        log = (self.directory / f"{name}.log").open("wb")
        script = f". {self.state}\nexec {self.moved(text.strip())}\n"
        with log:
            self.processes[name] = subprocess.Popen(
                ["/bin/bash", "-c", script], env=dict(self.environment), cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def close(self) -> dict[str, int]:
        """Ctrl-C in every terminal, the last one first; their exit codes."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGINT)
            try:
                codes[name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


@pytest.fixture
def reader() -> Iterator[Reader]:
    with tempfile.TemporaryDirectory(prefix="kt-") as directory:  # short, for unix sockets
        reader = Reader(Path(directory))
        try:
            yield reader
        finally:
            reader.close()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_page_leads_to_a_running_mapper(reader: Reader) -> None:
    for block in blocks(PAGE):
        if block.terminal:
            reader.open_terminal(block.terminal, block.text)
            if block.terminal == "demo":
                started = reader.directory / "demo" / "demo.json"
                wait_for(started.exists, within_s=60, what=f"the demo is up: {reader.log('demo')}")
        elif block.language == "sh":
            reader.type(block.text)
        elif block.language == "console":
            for command, shown in commands(block):
                wait_for(
                    lambda command=command, shown=shown: is_like(shown, reader.type(command)),  # type: ignore[misc]
                    within_s=30, what=f"{command} shows\n{shown}",
                )  # fmt: skip
    # What the page says in words: the device goes away and comes back, and has what is desired.
    reader.processes["device"].send_signal(signal.SIGINT)
    assert reader.processes["device"].wait(10) == 0
    wait_for(
        lambda: "offline" in reader.type("kubectl get devicestatus acme-meter-1"), within_s=30, what="it is offline"
    )
    reader.open_terminal("device", next(b.text for b in blocks(PAGE) if b.terminal == "device"))
    wait_for(lambda: "online" in reader.type("kubectl get devicestatus acme-meter-1"), within_s=30, what="it is online")
    # The simulator forgot the limit when it ended; the runtime sees to it that the device has it again.
    wait_for(
        lambda: "limit=20 A" in reader.type("kubectl get devicestatus acme-meter-1"), within_s=30, what="limit is 20"
    )
    assert reader.close() == {"device": 0, "mapper": 0, "demo": 0}


def test_the_code_on_the_page_is_the_code_that_is_generated(tmp_path: Path) -> None:
    project = create(Answers("acme-meter"), tmp_path)
    generated = "".join((project / "acme_meter" / name).read_text() for name in ("config.py", "driver.py"))
    excerpts = [b.text for b in blocks(PAGE) if b.language == "python"]
    assert len(excerpts) == 3
    for excerpt in excerpts:
        assert excerpt in generated
