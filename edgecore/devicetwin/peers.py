"""Who may call the DMI socket, by the credentials that the kernel gives of a peer (`SO_PEERCRED`).

gRPC does not tell them, so where there is a list the connections are taken here, and those of the listed are passed on
byte by byte to gRPC's own socket, which nobody else can reach. The socket is open to everybody then (mode 0666), for
the list decides. Without a list there is none of this, and the mode (0660) decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from dmi import ConfigError
from dmi.metrics import Metrics

__all__ = ["Allowed", "Peer", "allowed_of", "guarded_socket", "inner_socket", "peer_of"]

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 512
"""At once; more wait in the kernel."""
END_S: Final = 1.0
"""For what one end of a connection still has to take when the other has closed."""
_CHUNK: Final = 64 * 1024
_SO_PEERGROUPS: Final = 59  # Linux 4.13; Python has no name for it
_MAX_GROUPS: Final = 256  # what Python's getsockopt has room for
_MODE: Final = 0o666
_CREDENTIALS: Final = struct.Struct("3i")
_INNER: Final = ".dmi"
"""Directory of gRPC's own socket, beside the one that is guarded."""


class Peer(Struct, frozen=True):
    """A process at the other end of a unix socket, when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


class Allowed(Struct, frozen=True):
    users: frozenset[int]
    groups: frozenset[int]

    def admits(self, peer: Peer) -> bool:
        """Root and our own user always: they could read our files as well."""
        return peer.uid in (0, os.geteuid()) or peer.uid in self.users or not self.groups.isdisjoint(peer.groups)


def allowed_of(users: Sequence[str | int], groups: Sequence[str | int]) -> Allowed | None:
    """None: there is no list.

    Raises:
        ConfigError: A name that this machine does not know.
    """
    if not users and not groups:
        return None
    import grp  # only where there is a list
    import pwd

    def number_of(key: str, kind: str, index: int, who: str | int) -> int:
        try:
            number = int(who)
        except ValueError:
            try:
                return pwd.getpwnam(str(who)).pw_uid if kind == "user" else grp.getgrnam(str(who)).gr_gid
            except KeyError:
                raise ConfigError(f"{key}[{index}]", f"there is no {kind} {who!r} on this machine") from None
        if not 0 <= number < 2**32 - 1:
            raise ConfigError(f"{key}[{index}]", f"{who!r} is not the number of a {kind}")
        return number

    key = "modules.deviceTwin.dmiAllowed"
    return Allowed(
        frozenset(number_of(f"{key}Users", "user", i, who) for i, who in enumerate(users)),
        frozenset(number_of(f"{key}Groups", "group", i, who) for i, who in enumerate(groups)),
    )


def peer_of(connection: socket.socket) -> Peer:
    """
    Raises:
        OSError: Not a unix socket.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = (number & 0xFFFFFFFF for number in _CREDENTIALS.unpack(raw))
    return Peer(pid, uid, frozenset({gid, *_more_groups(connection, uid, gid)}))


def _more_groups(connection: socket.socket, uid: int, gid: int) -> Sequence[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        return [number for (number,) in struct.iter_unpack("=I", raw)]
    except OSError:  # more than that, or a kernel that cannot say: what the user database has of it
        import pwd

        try:
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except (KeyError, OSError):
            return ()


@contextlib.asynccontextmanager
async def guarded_socket(path: Path, inner: Path, allowed: Allowed, metrics: Metrics) -> AsyncIterator[None]:
    """Take connections at `path` while the block runs and pass those that are allowed on to `inner`.

    Raises:
        ConfigError: The path is too long for a socket.
    """
    guard = _Guard(inner, allowed, metrics)
    with _listening(path) as listener:
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(guard.accept(listener, tasks), name="dmi connections")
            try:
                yield
            finally:
                accepting.cancel()
                guard.close()


def inner_socket(path: Path) -> Path:
    """Where gRPC serves behind a guarded socket: in a directory that is ours alone."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = path.parent / _INNER
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    return directory / path.name


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Under a temporary name first: nobody connects before it listens, and what a killed process left is replaced."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        hidden.unlink(missing_ok=True)
        try:
            listener.bind(os.fspath(hidden))
        except OSError as error:
            raise ConfigError(str(path), f"cannot be a socket: {error}") from error
        hidden.chmod(_MODE)
        listener.listen(128)
        hidden.replace(path)
        inode = path.stat().st_ino
        if not path.parent.stat().st_mode & 0o001:
            logger.warning(
                "%s: modules.deviceTwin.dmiAllowedUsers lets users in whom the mode of %s keeps out: chmod o+x it",
                path,
                path.parent,
            )
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:  # not that of a successor that is serving already
                    path.unlink()


class _Guard:
    def __init__(self, inner: Path, allowed: Allowed, metrics: Metrics) -> None:
        self._inner = inner
        self._allowed = allowed
        self._relays: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._told: set[int] = set()
        self._refused = metrics.counter(
            "kubetwin_edgecore_dmi_connections_refused_total", "Connections of users whom the allow list does not have."
        )

    async def accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, most likely
                self._room.release()
                logger.warning("a connection to the DMI socket could not be taken: %s", error)
                await asyncio.sleep(0.1)
                continue
            except BaseException:
                self._room.release()
                raise
            task = tasks.create_task(self._serve(connection), name="dmi connection")
            self._relays.add(task)
            task.add_done_callback(self._ended)

    def close(self) -> None:
        for task in self._relays:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._relays.discard(task)
        self._room.release()

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                peer = peer_of(connection)
                if self._allowed.admits(peer):
                    await self._relay(connection)
                else:
                    self._note_refused(peer)
            except OSError as error:
                logger.debug("a connection to the DMI socket ended: %s", error)

    def _note_refused(self, peer: Peer) -> None:
        self._refused.add()
        if peer.uid not in self._told and len(self._told) < 1000:
            self._told.add(peer.uid)
            logger.warning(
                "user %d (process %d) may not call the DMI socket: neither modules.deviceTwin.dmiAllowedUsers nor "
                "dmiAllowedGroups has it",
                peer.uid,
                peer.pid,
            )

    async def _relay(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        async with _closing(writer):
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._inner)
            async with _closing(inner_writer):
                ways = (
                    asyncio.create_task(_pump(reader, inner_writer), name="dmi connection in"),
                    asyncio.create_task(_pump(inner_reader, writer), name="dmi connection out"),
                )
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:  # one way is over, or we are: so is the other
                    for way in ways:
                        way.cancel()
                    await asyncio.wait(ways)


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """What is written still gets through, unless nobody takes it. After this nothing watches the descriptor, which may
    be another connection's next.
    """
    try:
        yield
    finally:
        writer.close()
        try:
            async with asyncio.timeout(END_S):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
