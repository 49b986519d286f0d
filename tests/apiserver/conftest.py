"""A served API for each test: real TLS, real files, and a real kubectl to talk to it."""

import asyncio
import io
import json
import os
import ssl
import sys
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kubetwin.apiserver import ApiServer

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
WIDGETS = "/apis/test.kubetwin.io/v1/namespaces/default/widgets"
MERGE = "application/merge-patch+json"
DEADLINE_S = 10.0


def widget_definition() -> dict[str, Any]:
    """A small CustomResourceDefinition with what the tests need of one."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "description": "What the widget should be.",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "description": "How big it is."},
                    "color": {"type": "string", "default": "red", "enum": ["red", "green"]},
                    "notes": {"type": "array", "items": {"type": "string"}},
                },
            },
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    columns = [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"plural": "widgets", "kind": "Widget", "shortNames": ["wg"], "categories": ["kubetwin"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.test.kubetwin.io"},
        "spec": {"group": "test.kubetwin.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }


def widget(name: str, *, size: int = 1, **metadata: Any) -> dict[str, Any]:
    """A Widget as a client would write it."""
    return {
        "apiVersion": "test.kubetwin.io/v1",
        "kind": "Widget",
        "metadata": {"name": name, **metadata},
        "spec": {"size": size},
    }


class Client:
    """Plain HTTP to a server: what a client library would send, without one."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def call(
        self, method: str, path: str, body: Any = None, *, media: str = "application/json", **query: str
    ) -> tuple[int, Any]:
        """The code and the decoded body of the answer."""
        encoded = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        data = io.BytesIO(encoded) if encoded is not None else None
        headers = {"Content-Type": media} if data is not None else {}
        async with self.session.request(
            method, self.server.url + path, data=data, params=query, headers=headers
        ) as response:
            return response.status, await response.json(content_type=None)

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The decoded body of an answer that must be a success."""
        code, answer = await self.call(method, path, body, **more)
        assert code in (200, 201), answer
        return answer

    async def define_widgets(self) -> None:
        """Apply the Widget definition."""
        await self.ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", widget_definition())

    async def watch(self, path: str, **query: str) -> "Watch":
        """Open a watch."""
        params = {"watch": "true", **query}
        response = await self.session.get(self.server.url + path, params=params)
        return Watch(response)

    async def gone(self, path: str) -> None:
        """Wait until an object is gone."""
        for _ in range(1000):
            if (await self.call("GET", path))[0] == 404:
                return
            await asyncio.sleep(DEADLINE_S / 1000)
        raise TimeoutError(f"{path} is still there")


class Watch:
    """The events of a watch, one by one."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> dict[str, Any]:
        """The next event; an empty one at the end of the stream."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.response.content.readline()
        event: dict[str, Any] = json.loads(line) if line else {}
        return event

    async def names(self, count: int) -> list[tuple[str, str]]:
        """Type and name of the next events."""
        events = [await self.next() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"]["name"]) for event in events]

    def close(self) -> None:
        """Leave."""
        self.response.close()


async def started(data: Path) -> tuple[asyncio.subprocess.Process, ApiServer]:
    """A server in a process of its own, and what a client must know of it."""
    program = "import sys, pathlib; from kubetwin.apiserver import run; run(pathlib.Path(sys.argv[1]), 0, None)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(data))
    known = ApiServer(data)
    for _ in range(1000):
        if known.kubeconfig.exists():  # written last, once it listens
            known.port = int((data / "port").read_text())
            known.token = (data / "token").read_text()
            return process, known
        await asyncio.sleep(DEADLINE_S / 1000)
    raise TimeoutError("no kubeconfig was written")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    """A server on a fresh data directory."""
    async with ApiServer(tmp_path / "data") as running:
        yield running


def trusting(server: ApiServer) -> aiohttp.ClientSession:
    """A session that knows the server's CA and token."""
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {server.token}"},
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(server.ca_file))),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=1 << 22,
    )


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[Client]:
    """An HTTP client of `server`."""
    async with trusting(server) as session:
        yield Client(server, session)


class Kubectl:
    """A real kubectl with its own cache."""

    def __init__(self, server: ApiServer, home: Path) -> None:
        self._home = home
        self._env = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig),
            "HOME": str(home),
            "KUBECACHEDIR": str(home / "cache"),
        }

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        """A running kubectl."""
        return await asyncio.create_subprocess_exec(
            KUBECTL,
            *args,
            env=self._env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def fails(self, *args: str, stdin: object = None) -> str:
        """What kubectl prints when it must fail."""
        code, text = await self._run(args, stdin)
        assert code != 0, text
        return text

    async def __call__(self, *args: str, stdin: object = None) -> str:
        """What kubectl prints when it must succeed."""
        code, text = await self._run(args, stdin)
        assert code == 0, text
        return text

    async def _run(self, args: tuple[str, ...], stdin: object) -> tuple[int | None, str]:
        process = await self.start(*args)
        async with asyncio.timeout(30):
            output, _ = await process.communicate(json.dumps(stdin).encode() if stdin is not None else b"")
        return process.returncode, output.decode()


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Kubectl:
    """kubectl with the kubeconfig that `server` wrote."""
    return Kubectl(server, tmp_path)
