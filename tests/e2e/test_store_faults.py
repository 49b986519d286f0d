"""What happens to edge core's file: damaged while it runs, damaged while it does not, and a disk with no room left."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.harness import Demo, wait_for
from tests.e2e.why_harness import why_until
from tests.edgecore.api_client import get

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

WITHIN_S = 40.0
BOILER = "boiler-1"
FILLERS = [f"filler-{number}" for number in range(24)]
NOTE = "n" * 100_000
"""Two dozen declarations of this size are more than edge core's file keeps in memory: they are read from the disk."""
DISK_BYTES = 8 * 1024 * 1024
LABEL_REGISTER = 10


class Content(NamedTuple):
    """What a restart would find in edge core's file."""

    objects: dict[tuple[str, str], bytes]
    twins: dict[str, str]
    """Reported values of the boiler."""


@pytest.fixture
def fillers(demo: Demo) -> Iterator[list[str]]:
    """Large declarations, all of them stored, and most of them in no memory of edge core."""
    boiler = demo.get("device", BOILER)
    manifests = []
    for name in FILLERS:
        metadata = {"name": name, "namespace": "default", "annotations": {"note": NOTE}}
        spec = {**boiler["spec"], "stateReport": {}, "properties": []}
        manifests.append({**boiler, "metadata": metadata, "spec": spec})
        manifests[-1].pop("status", None)
    demo.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    try:
        wait_for(lambda: _has_fillers(demo), within_s=WITHIN_S, what="edge core has stored all")
        demo.kill("edgecore", signal.SIGTERM)
        demo.restart("edgecore")
        why_until(demo, 0, within_s=WITHIN_S)
        yield FILLERS
    finally:
        demo.kubectl("delete", "devices", *FILLERS)
    wait_for(lambda: not _has_fillers(demo), within_s=WITHIN_S, what="they are gone again")


def test_a_file_damaged_while_edge_core_uses_it(demo: Demo, fillers: list[str]) -> None:
    said = len(demo.log("edgecore"))
    pid = demo.pid("edgecore")
    _damage(_file(demo))
    _damage(_file(demo).with_name(f"{_file(demo).name}-wal"))
    cycle = {"spec": {"stateReport": {"reportCycle": 20_000}}}  # the old declaration is read, to make its pages free
    demo.kubectl("patch", "device", *fillers[:4], "--type", "merge", "-p", json.dumps(cycle))
    aside = wait_for(lambda: _set_aside(demo, said), within_s=WITHIN_S, what="the log says that it is damaged")
    assert aside.stat().st_size > len(fillers) * len(NOTE)
    _assert_whole(demo, "hot", "41")
    assert demo.pid("edgecore") == pid, "without a restart"
    stored = _content(_file(demo)).objects
    assert all(
        json.loads(stored["device", name])["spec"]["stateReport"] == cycle["spec"]["stateReport"]
        for name in fillers[:4]
    )


@pytest.mark.parametrize("first_byte", (0, 8192), ids=("from the first byte", "after the first pages"))
def test_a_file_damaged_while_edge_core_is_stopped(demo: Demo, fillers: list[str], first_byte: int) -> None:
    said = len(demo.log("edgecore"))
    demo.kill("edgecore", signal.SIGTERM)
    _damage(_file(demo), first_byte)
    demo.restart("edgecore")
    aside = wait_for(lambda: _set_aside(demo, said), within_s=WITHIN_S, what="the log says that it is damaged")
    assert aside.stat().st_size > len(fillers) * len(NOTE)
    _assert_whole(demo, f"cold {first_byte}", "42" if first_byte else "43")


def test_a_full_disk(demo: Demo, small_disk: Path) -> None:
    file = small_disk / "edgecore.db"
    said = len(demo.log("edgecore"))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as full:
        while True:
            full.write(b"x" * 512)
    told = why_until(demo, 18, within_s=WITHIN_S)
    assert "nothing is written to disk" in told.summary
    assert "full" in told.summary
    ready = wait_for(lambda: _ready(demo, "degraded"), within_s=5, what="the local API says so, too")
    assert "full" in ready["store"]["trouble"]
    assert ready["store"]["since"] > 0
    for value in ("full one", "full two", "full three"):
        _turn_label(demo, value)
        wait_for(lambda v=value: demo.reported(BOILER, "label") == v, within_s=WITHIN_S, what="values go on")  # type: ignore[misc]
    _assert_written(demo, "44")
    assert _content(file).twins.get("label") != "full three", "it was not on the disk"
    assert demo.log("edgecore")[said:].count("cannot be written") == 1

    ballast.unlink()
    why_until(demo, 0, within_s=WITHIN_S)
    assert _ready(demo, "ok")["store"] == {"trouble": "", "since": 0}
    assert demo.log("edgecore")[said:].count("can be written again") == 1
    _turn_label(demo, "room")
    wait_for(lambda: demo.reported(BOILER, "label") == "room", within_s=WITHIN_S, what="a value after it")
    wait_for(lambda: _content(file).twins["label"] == "room", within_s=WITHIN_S, what="it is on the disk")

    demo.kill("mapper-modbus")  # so that nobody says again what edge core should have kept
    demo.kill("edgecore")
    kept = _content(file)
    assert {("devicemodel", "boiler"), ("device", BOILER)} <= kept.objects.keys()
    demo.restart("edgecore")
    try:
        wait_for(lambda: _ready(demo, "ok"), within_s=WITHIN_S, what="edge core is back")
        twins = _local(demo, f"/v1/devices/default/{BOILER}")["twins"]
    finally:
        demo.restart("mapper-modbus")
    assert {twin["property"]: twin["value"] for twin in twins} == kept.twins
    assert (kept.twins["label"], kept.twins["set-point"], len(kept.twins)) == ("room", "44", 7)
    why_until(demo, 0, within_s=WITHIN_S)
    assert "damaged" not in demo.log("edgecore")[said:]


@pytest.fixture
def small_disk(demo: Demo) -> Iterator[Path]:
    """Where edge core's file is meanwhile: a few megabytes for it alone."""
    disk = demo.directory / "disk"
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs root and the right to mount a small disk")
    configuration = demo.directory / "edgecore.yaml"
    before = configuration.read_text()
    try:
        _run_with(demo, before.replace(str(_file(demo)), str(disk / "edgecore.db")))
        yield disk
    finally:
        try:
            _run_with(demo, before)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def _run_with(demo: Demo, configuration: str) -> None:
    """Edge core anew, with another configuration."""
    with contextlib.suppress(Exception):  # a failed test may have left none
        demo.kill("edgecore", signal.SIGTERM)
    (demo.directory / "edgecore.yaml").write_text(configuration)
    demo.restart("edgecore")
    why_until(demo, 0, within_s=WITHIN_S)


def _file(demo: Demo) -> Path:
    return demo.directory / "edgecore.db"


def _damage(file: Path, first_byte: int = 8192) -> None:
    """Overwrite it in place, from there to the end."""
    with file.open("r+b") as pages:
        pages.seek(first_byte)
        pages.write(b"\xa5" * (file.stat().st_size - first_byte))
        os.fsync(pages.fileno())


def _set_aside(demo: Demo, said: int) -> Path | None:
    """The damaged file, by the name that the log has for it."""
    for line in demo.log("edgecore")[said:].splitlines():
        if f"{_file(demo)} is damaged" in line:
            aside = Path(line.partition("set aside as ")[2].partition(",")[0])
            assert aside.parent == demo.directory
            return aside
    return None


def _assert_whole(demo: Demo, label: str, set_point: str) -> None:
    """Declarations are there again and twins refill, a value goes up, and a wish goes down."""
    wait_for(lambda: _has_fillers(demo), within_s=WITHIN_S, what="every declaration came again")
    wait_for(lambda: len(_content(_file(demo)).twins) == 7, within_s=WITHIN_S, what="all twins are in the new file")
    devices = [device["device"] for device in _local(demo, "/v1/devices")["devices"]]
    assert sorted(devices) == sorted(f"default/{name}" for name in (BOILER, *FILLERS))
    _turn_label(demo, label)
    wait_for(lambda: demo.reported(BOILER, "label") == label, within_s=WITHIN_S, what="a changed value is at the API")
    _assert_written(demo, set_point)
    why_until(demo, 0, within_s=WITHIN_S)


def _assert_written(demo: Demo, set_point: str) -> None:
    demo.set_desired(BOILER, "set-point", set_point)
    with demo.modbus() as modbus:
        wait_for(
            lambda: modbus.read_holding_registers(0, count=1, device_id=1).registers[0] == int(set_point) * 10,
            within_s=WITHIN_S, what="what is desired is on the device",
        )  # fmt: skip
    wait_for(lambda: demo.reported(BOILER, "set-point") == set_point, within_s=WITHIN_S, what="and is read back")


def _turn_label(demo: Demo, text: str) -> None:
    """At the device itself: 16 bytes in eight registers."""
    content = text.encode().ljust(16, b"\0")
    with demo.modbus() as modbus:
        words = [int.from_bytes(content[i : i + 2]) for i in range(0, 16, 2)]
        assert not modbus.write_registers(LABEL_REGISTER, words, device_id=1).isError()


def _has_fillers(demo: Demo) -> bool:
    """Whether the file has them, whole, beside the boiler and the model."""
    objects = _content(_file(demo)).objects
    assert {("devicemodel", "boiler"), ("device", BOILER)} <= objects.keys()
    return all(NOTE.encode() in objects.get(("device", name), b"") for name in FILLERS)


def _content(file: Path) -> Content:
    """Read from a copy of the file and of its log: the running edge core holds the file."""
    with tempfile.TemporaryDirectory() as directory:
        for part in (file, file.with_name(f"{file.name}-wal")):
            if part.exists():
                shutil.copy(part, directory)
        try:
            with contextlib.closing(sqlite3.connect(f"{directory}/{file.name}")) as database:
                objects = database.execute("SELECT kind, name, body FROM object").fetchall()
                twins = database.execute("SELECT property, reported FROM twin WHERE device = ?", (f"default/{BOILER}",))
                return Content({(kind, name): body for kind, name, body in objects}, dict(twins.fetchall()))
        except sqlite3.DatabaseError as error:  # copied while it was written, or not there yet
            raise AssertionError(error) from error


def _local(demo: Demo, target: str) -> Any:
    status, answer = asyncio.run(get(demo.directory / "edgecore.sock", target))
    assert status == 200, answer
    return answer


def _ready(demo: Demo, status: str) -> Any:
    try:
        answer = _local(demo, "/readyz")
    except OSError as error:  # it is just starting
        raise AssertionError(error) from error
    return answer if answer["status"] == status else None
