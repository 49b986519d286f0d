"""What this machine is and how it is, from /proc and its like. What cannot be read is left out, not guessed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

__all__ = ["Machine", "local_address", "read_machine"]

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
"""What the kernel calls it → what Go and Kubernetes do."""


class Machine(Struct, frozen=True):
    architecture: str
    kernel: str
    os_image: str
    machine_id: str
    system_uuid: str
    boot_id: str
    cpus: int
    memory_kib: int
    memory_free_kib: int
    """Available to new work without swapping."""
    disk_kib: int
    """Of the file system with the database."""
    disk_free_kib: int
    threads: int
    threads_max: int


def read_machine(data_directory: Path) -> Machine:
    """As of now. Numbers that cannot be read are 0, texts empty."""
    memory = _table(Path("/proc/meminfo"), ":")
    release = _table(Path("/etc/os-release"), "=")
    total, free = 0, 0
    with contextlib.suppress(OSError):
        disk = os.statvfs(data_directory)
        total, free = disk.f_blocks * disk.f_frsize // 1024, disk.f_bavail * disk.f_frsize // 1024
    uname = os.uname()
    limits = [_number(_text(Path("/proc/sys/kernel") / name)) for name in ("pid_max", "threads-max")]
    return Machine(
        architecture=_ARCHITECTURES.get(uname.machine, uname.machine),
        kernel=uname.release,
        os_image=release.get("PRETTY_NAME", "").strip('"'),
        machine_id=_text(Path("/etc/machine-id")),
        system_uuid=_text(Path("/sys/class/dmi/id/product_uuid")),
        boot_id=_text(Path("/proc/sys/kernel/random/boot_id")),
        cpus=os.cpu_count() or 0,
        memory_kib=_number(memory.get("MemTotal", "")),
        memory_free_kib=_number(memory.get("MemAvailable", "")),
        disk_kib=total,
        disk_free_kib=free,
        threads=_number(_text(Path("/proc/loadavg")).partition("/")[2]),
        threads_max=min(limits),
    )


async def local_address(url: str) -> str:
    """The address that the cloud at `url` is reached from; empty when it cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        family = _family(host)
        if family is None:
            loop = asyncio.get_running_loop()
            family, _, _, _, target = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
            host = str(target[0])
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    return ""


def _family(host: str) -> socket.AddressFamily | None:
    """None: it is a name. Asking the C library would load its name services, 0.2 MB."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _table(path: Path, separator: str) -> dict[str, str]:
    rows = (line.partition(separator) for line in _text(path).splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def _number(text: str) -> int:
    """The one that it begins with."""
    first = text.split(maxsplit=1)[0] if text else ""
    return int(first) if first.isascii() and first.isdigit() else 0
