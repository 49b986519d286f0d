"""A link between two network namespaces, carried packet by packet in this process: it can go down, lose, delay, double
and reorder packets, by a seed. Kernels often come without `netem`; TUN devices they all have. It needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from tests.faults.loop_thread import LoopThread

__all__ = ["HERE", "THERE", "Link", "LinkFaults", "NoNamespaces", "namespace_link"]

HERE: Final = "198.18.77.1"
"""Of 198.18.0.0/15, which is set aside for such tests (RFC 2544)."""
THERE: Final = "198.18.77.2"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_MTU: Final = 1500


class NoNamespaces(Exception):
    """This machine has no network namespaces for us; says why."""


class LinkFaults(Struct, frozen=True):
    """What happens to packets, in both directions. The first three are shares of all packets."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    """These take `late_s` more, so that later ones overtake them."""
    late_s: float = 0.05
    delay_s: float = 0.0


class Link:
    """Made by `namespace_link`: `ip netns exec <namespace> …` runs at its other end."""

    def __init__(self, thread: LoopThread, namespace: str, *, seed: int) -> None:
        self.namespace = namespace
        self.down = False
        """Every packet is lost, and neither end is told."""
        self.faults = LinkFaults()
        self.lost = 0
        """Packets."""
        self.carried = 0
        self._thread = thread
        self._rng = random.Random(seed)
        self._devices: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def command(self) -> list[str]:
        """What a command begins with, to run at the other end."""
        return ["ip", "netns", "exec", self.namespace]

    def open(self) -> None:
        """Raises: NoNamespaces: Why not."""
        names = [f"kt{os.getpid()}{end}" for end in "ab"]
        try:
            for name in names:
                device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                self._devices.append(device)
                fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
            _run("ip", "netns", "add", self.namespace)
            _run("ip", "link", "set", names[1], "netns", self.namespace)
            _run("ip", "addr", "add", f"{HERE}/32", "peer", THERE, "dev", names[0])
            _run("ip", "link", "set", names[0], "up")
            _run(*self.command, "ip", "addr", "add", f"{THERE}/32", "peer", HERE, "dev", names[1])
            _run(*self.command, "ip", "link", "set", names[1], "up")
            _run(*self.command, "ip", "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoNamespaces(f"no network namespace with TUN devices: {error}") from error
        self._thread.call(self._carry)

    def close(self) -> None:
        def stop() -> None:
            for device in self._devices:
                asyncio.get_running_loop().remove_reader(device)

        self._thread.call(stop)
        for device in self._devices:
            os.close(device)  # and with it the network device
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False, capture_output=True)

    def _carry(self) -> None:
        self._loop = asyncio.get_running_loop()
        here, there = self._devices
        self._loop.add_reader(here, self._pass_on, here, there)
        self._loop.add_reader(there, self._pass_on, there, here)

    def _pass_on(self, origin: int, to: int) -> None:
        assert self._loop is not None
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(origin, _MTU + 100):
                faults, rng = self.faults, self._rng
                if self.down or rng.random() < faults.lost:
                    self.lost += 1
                    continue
                self.carried += 1
                for _ in range(2 if rng.random() < faults.doubled else 1):
                    delay_s = faults.delay_s + (faults.late_s if rng.random() < faults.late else 0)
                    if delay_s:
                        self._loop.call_later(delay_s, self._write, to, packet)
                    else:
                        self._write(to, packet)

    def _write(self, to: int, packet: bytes) -> None:
        try:
            os.write(to, packet)
        except OSError:  # full, or closed meanwhile: one more lost packet
            self.lost += 1


@contextlib.contextmanager
def namespace_link(thread: LoopThread, *, seed: int) -> Iterator[Link]:
    """A namespace of its own at the other end of a link, while the block runs.

    Raises:
        NoNamespaces: Why not.
    """
    link = Link(thread, f"kubetwin-{os.getpid()}", seed=seed)
    try:
        link.open()
        yield link
    finally:
        link.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
