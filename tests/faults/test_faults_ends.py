"""An end is killed, its clock jumps, or its disk is full."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import wait_for
from tests.faults.clock import NoCompiler, SetClock
from tests.faults.world import WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

DISK_BYTES = 2 * 1024 * 1024
HOUR_S = 3600


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=31) as world:
        with world.changing(seed=31):
            for part in ("edgecore", "cloudcore", "mapper-modbus"):
                world.restart(part)
                time.sleep(1)
        world.all_right()
        world.note_memory()
        yield world


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_random_points(well: World, seed: int) -> None:
    """Of either end, several times in a row, while values and wishes change."""
    rng = random.Random(f"kill {seed}")
    with well.changing(seed=seed):
        for _ in range(5):
            time.sleep(rng.uniform(0, 1.2))
            for part in rng.choice(
                (("edgecore",), ("cloudcore",), ("edgecore", "cloudcore"), ("cloudcore", "edgecore"))
            ):
                well.restart(part)
    well.all_right()


@pytest.mark.parametrize("part", ("edgecore", "cloudcore"))
def test_killed_while_it_starts(well: World, part: str) -> None:
    rng = random.Random(f"start {part}")
    with well.changing(seed=33):
        for _ in range(8):
            well.kill(part)
            well.launch(part)
            time.sleep(rng.uniform(0, 1.5))
        well.restart(part)
    well.all_right()


MACHINES = {"the edge": ("edgecore", "mapper-modbus"), "the cloud": ("cloudcore",)}
"""Whoever shares a clock."""


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("jump_s", (HOUR_S, -HOUR_S), ids=("an hour ahead", "an hour back"))
def test_a_clock_jumps_and_jumps_back(well: World, machine: str, jump_s: int) -> None:
    """The wall clock alone, as when somebody sets it: what measures time does not jump."""
    try:
        clock = SetClock(well.plan.directory)
    except NoCompiler as why:
        pytest.skip(str(why))
    parts = MACHINES[machine]
    _restart_with(well, parts, clock.environment)
    try:
        well.all_right()
        for offset in (jump_s, 0):
            clock.set(offset)
            with well.changing(seed=35):
                time.sleep(2)
            well.all_right()
            well.hub.cut()
            well.turn_all(abs(offset) + 1)
            well.wish_all(abs(offset) % 50_000 + 1)
            well.all_right()
            well.restart(parts[0])
            well.turn_all(abs(offset) + 2)
            well.wish_all(abs(offset) % 50_000 + 2)
            well.all_right()
    finally:
        _restart_with(well, parts, {})


def _restart_with(world: World, parts: Sequence[str], environment: dict[str, str]) -> None:
    for part in parts:
        world.environment[part] = environment
        world.restart(part, signal.SIGTERM)


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """Where edge core's file is meanwhile."""
    disk = world.plan.directory / "disk"
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount a small disk")
    file = world.plan.directory / "edgecore.db"
    try:
        _keep_in(world, disk / file.name)
        yield disk
    finally:
        _keep_in(world, file)
        subprocess.run(["umount", "--lazy", disk], check=True)
        shutil.rmtree(disk, ignore_errors=True)


def _keep_in(world: World, file: Path) -> None:
    world.kill("edgecore", signal.SIGTERM)
    world.reconfigure("edgecore.yaml", {"database": {"dataSource": str(file)}})
    world.start("edgecore")


def test_the_disk_of_the_edge_is_full(well: World, small_disk: Path) -> None:
    """Values and wishes go on, also over cuts and a restart of either end; afterwards they are on the disk."""
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as full:
        while True:
            full.write(b"x" * 512)
    with well.changing(seed=36):
        for _ in range(3):
            time.sleep(1)
            well.hub.cut()
        well.restart("cloudcore")
    well.all_right()
    well.restart("edgecore")
    well.turn_all(36)
    well.wish_all(3600)
    well.all_right()
    ballast.unlink()
    well.turn_all(37)
    well.wish_all(3700)
    well.all_right()
    wait_for(
        lambda: "can be written again" in well.log("edgecore"), within_s=WITHIN_S, what="edge core writes to it again"
    )
