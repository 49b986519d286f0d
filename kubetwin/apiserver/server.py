"""The server as a whole: data directory, port, TLS, the collector task; `async with ApiServer(...)` or `run(...)`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from aiohttp import web

from kubetwin.apiserver import crd, pki
from kubetwin.apiserver.admission import Target, WriteOptions
from kubetwin.apiserver.builtin import START_NAMESPACES, builtin_kinds
from kubetwin.apiserver.collector import Collector
from kubetwin.apiserver.http import HttpApi
from kubetwin.apiserver.items import Event
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.objects import Objects
from kubetwin.apiserver.store import Store

logger = logging.getLogger(__name__)

_SHUTDOWN_S = 2.0  # for requests under way; watches are ended first


class ApiServer:
    """A Kubernetes API on one data directory.

    Everything a client needs is known once it is entered: `url`, `token`, `ca_file`, `kubeconfig`.

    Raises:
        StorageError: On entering, when the data file cannot be opened, or another server has it open.
        OSError: On entering, when the asked-for port is taken.
    """

    def __init__(
        self, data_dir: Path, *, host: str = "127.0.0.1", port: int = 0, kubeconfig: Path | None = None
    ) -> None:
        """`port` 0: the port of the last run if it is free, else any. `kubeconfig`: by default in `data_dir`."""
        self.data_dir = data_dir
        self.kubeconfig = kubeconfig or data_dir / "kubeconfig"
        self.ca_file = data_dir / "pki" / "ca.crt"
        self.token = ""
        self.port = port
        self._host = host
        self._stack = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self.port}"

    async def __aenter__(self) -> ApiServer:
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = Store(self.data_dir / "objects.db")
        store.open()
        stack.callback(store.close)
        registry = Registry()
        for kind in builtin_kinds(registry):
            registry.serve(kind)
        for item in store.state(crd.RESOURCE).items.values():
            definition = item.decode()
            if crd.is_established(definition):
                registry.serve(crd.kind_of(definition))
        objects = Objects(store, registry)
        self.token = pki.admin_token(self.data_dir / "token")
        http = HttpApi(store, registry, objects, token=self.token)
        store.observers.append(lambda event: _follow_definitions(event, registry, http))
        collector = Collector(store, registry, objects)
        store.observers.append(collector.observe)
        task = asyncio.create_task(collector.run(), name="apiserver collector")
        stack.push_async_callback(_cancel, task)
        await _create_namespaces(store, registry, objects)

        context = pki.server_context(self.data_dir / "pki", self._host)
        runner = web.AppRunner(
            http.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.callback(http.reads.close_watches)
        sock = self._listen()
        self.port = sock.getsockname()[1]
        await web.SockSite(runner, sock, ssl_context=context, backlog=1024).start()
        pki.write_private(self.data_dir / "port", str(self.port).encode())
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        pki.write_private(self.kubeconfig, pki.kubeconfig(self.url, self.ca_file, self.token))
        logger.info("serving %s from %s, kubeconfig %s", self.url, self.data_dir, self.kubeconfig)

    def _listen(self) -> socket.socket:
        if self.port:
            return _bind(self._host, self.port)
        try:
            remembered = int((self.data_dir / "port").read_text())
        except (FileNotFoundError, ValueError):
            remembered = 0
        try:
            return _bind(self._host, remembered)
        except OSError as exc:
            if not remembered or exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            logger.warning(
                "port %d of the last run is taken, choosing another: clients must read the new kubeconfig", remembered
            )
            return _bind(self._host, 0)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _follow_definitions(event: Event, registry: Registry, http: HttpApi) -> None:
    """Serve what CustomResourceDefinitions say, from the moment they are committed."""
    if event.item.resource != crd.RESOURCE:
        return
    definition = event.item.decode()
    if event.type == "DELETED" or not crd.is_established(definition):
        registry.withdraw(event.item.name)
        http.reads.close_watches(event.item.name)
    elif (
        event.previous is None
        or event.previous.decode()["spec"] != definition["spec"]
        or not registry.by_resource(event.item.name)
    ):
        registry.serve(crd.kind_of(definition))
        http.reads.close_watches(event.item.name)  # they show the old columns and fields


async def _create_namespaces(store: Store, registry: Registry, objects: Objects) -> None:
    found = registry.find("", "v1", "namespaces")
    for name in START_NAMESPACES:
        if found is not None and store.newest("namespaces", ("", name)) is None:
            obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await objects.create(Target(*found), obj, WriteOptions())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])  # awaiting it would take a cancellation of ours for its own


async def serve(
    data_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    kubeconfig: Path | None = None,
    ready: Callable[[ApiServer], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set or the task is cancelled. `ready` is called once clients may connect."""
    async with ApiServer(data_dir, host=host, port=port, kubeconfig=kubeconfig) as server:
        if ready is not None:
            ready(server)
        await (stop or asyncio.Event()).wait()


def run(data: Path, port: int, kubeconfig: Path | None) -> None:
    """`kubetwin apiserver`: serve until SIGTERM or SIGINT, then end watches, finish writes and return."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(data, port=port, kubeconfig=kubeconfig, stop=stop)

    asyncio.run(main())
