"""The cluster as the user's own kubectl sees it: their contexts, their credentials, whatever cluster it is.

Reads go through `kubectl get --raw`, so that every call names `v1beta1` and needs no discovery. What kubectl says when
it cannot is turned into one sentence, and into an exception that tells the caller what to do next.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from msgspec import Struct

__all__ = [
    "GROUP",
    "ApiAway",
    "Forbidden",
    "KindMissing",
    "Kubectl",
    "KubectlError",
    "KubectlMissing",
    "Listing",
    "ObjectMissing",
    "kubectl_path",
    "resource_path",
]

GROUP: Final = "devices.kubeedge.io"
REQUEST_TIMEOUT_S: Final = 20
"""Of one request, in whole seconds; a watch has none."""
PAGE: Final = 500
"""Objects a list answers at a time, as kubectl's own."""
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Of one watch event: well above the 3 MiB an object may have."""

_POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_SINGULAR: Final = {
    "devices": "device", "devicemodels": "device model", "devicestatuses": "DeviceStatus", "nodes": "node",
}  # fmt: skip

Json = Mapping[str, Any]


class KubectlError(Exception):
    """kubectl could not do it; the text is a sentence for people."""


class KubectlMissing(KubectlError):
    """There is no kubectl to run."""


class ApiAway(KubectlError):
    """The API does not answer, or not now: trying again may help."""


class Forbidden(KubectlError):
    """The user may not: do without, or say so."""


class KindMissing(KubectlError):
    """The cluster does not serve the kind, usually because KubeEdge's definitions are not installed."""


class ObjectMissing(KubectlError):
    """There is no object of that name."""


class Listing(Struct, frozen=True):
    items: list[dict[str, Any]]
    version: str
    """The resourceVersion to watch from."""


def kubectl_path() -> str:
    """The kubectl that came with the `demo` extra, beside this Python; else whatever PATH has."""
    bundled = Path(sys.executable).parent / "kubectl"
    return str(bundled) if bundled.exists() else "kubectl"


def resource_path(plural: str, namespace: str = "", name: str = "") -> str:
    """Where the API serves one object, a namespace of them, or all; `events` and `nodes` are the core group's."""
    root = "/api/v1" if plural in ("events", "nodes") else f"/apis/{GROUP}/v1beta1"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{inside}/{plural}" + (f"/{quote(name, safe='')}" if name else "")


class Kubectl(Struct, frozen=True):
    """Runs kubectl. Every method raises `KubectlError`."""

    command: tuple[str, ...] = ()
    """The program and the flags of every call, such as `--context`; empty: `kubectl_path()` alone."""
    timeout_s: int = REQUEST_TIMEOUT_S

    async def run(self, *arguments: str) -> str:
        """Standard output of one call."""
        process = await self._start(arguments)
        try:
            output, complaint = await process.communicate()
        finally:
            await _end(process)
        if process.returncode:
            raise explain(complaint.decode(errors="replace"))
        return output.decode(errors="replace")

    async def namespace(self) -> str:
        """The namespace that kubectl would use without `-n`."""
        try:
            name = await self.run("config", "view", "--minify", "-o", "jsonpath={..namespace}")
        except KubectlMissing:
            raise
        except KubectlError:  # no context at all: kubectl then runs in a Pod, or fails in the next call
            with contextlib.suppress(OSError):
                return _POD_NAMESPACE.read_text().strip() or "default"
            return "default"
        return name.split()[0] if name.strip() else "default"

    async def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        """One object.

        Raises:
            ObjectMissing: It is not there.
        """
        try:
            return await self._raw(resource_path(plural, namespace, name))
        except ObjectMissing:
            where = f" in namespace {namespace}" if namespace else ""
            raise ObjectMissing(f"there is no {_SINGULAR.get(plural, plural)} {name!r}{where}") from None

    async def list(self, plural: str, namespace: str = "", **selectors: str) -> Listing:
        """Every object of a kind, in one namespace or in all. `selectors`: `labelSelector`, `fieldSelector`."""
        path, items, more = resource_path(plural, namespace), list[dict[str, Any]](), ""
        while True:
            query = {"limit": str(PAGE), **{k: v for k, v in selectors.items() if v}}
            page = await self._raw(f"{path}?{urlencode({**query, 'continue': more} if more else query)}")
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            more = metadata.get("continue") or ""
            if not more:
                return Listing(items, str(metadata.get("resourceVersion") or ""))

    @contextlib.asynccontextmanager
    async def watch(
        self, plural: str, namespace: str = "", *, version: str, **selectors: str
    ) -> AsyncIterator[asyncio.StreamReader]:
        """The lines of a watch, one event as JSON each. The block ends with `ApiAway` when kubectl failed."""
        query = {k: v for k, v in selectors.items() if v}
        query |= {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "290"}
        path = f"{resource_path(plural, namespace)}?{urlencode(query)}"
        process = await self._start(("get", "--raw", path), timeout_s=0)
        complaint = asyncio.create_task(_read(process.stderr), name=f"stderr of watching {plural}")
        try:
            if (lines := process.stdout) is None:
                raise KubectlError("kubectl was started without a pipe")
            yield lines
            if lines.at_eof() and await process.wait():
                raise explain((await complaint).decode(errors="replace"))
        finally:
            await _end(process)
            await complaint

    async def patch(
        self, plural: str, namespace: str, name: str, patch: object, kind: str, *, dry_run: bool = False
    ) -> None:
        """`kind`: `json` or `merge`."""
        options = ("--dry-run=server",) if dry_run else ()
        await self.run(
            "patch", f"{plural}.v1beta1.{GROUP}", name, "--namespace", namespace,
            "--type", kind, "--patch", json.dumps(patch), "--output", "name", *options,
        )  # fmt: skip

    async def _raw(self, path: str) -> dict[str, Any]:
        text = await self.run("get", "--raw", path)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiAway(f"what answers as the Kubernetes API sent no object for {path}")
        return answer

    async def _start(self, arguments: tuple[str, ...], *, timeout_s: int | None = None) -> asyncio.subprocess.Process:
        program, *flags = self.command or (kubectl_path(),)
        seconds = self.timeout_s if timeout_s is None else timeout_s
        if seconds:
            flags.append(f"--request-timeout={seconds}s")
        try:
            return await asyncio.create_subprocess_exec(
                program, *flags, *arguments,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES,
            )  # fmt: skip
        except FileNotFoundError:
            raise KubectlMissing(f"{program} is not installed, or not on PATH") from None
        except OSError as error:
            raise KubectlMissing(f"{program} cannot be started: {error.strerror}") from error


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    return await stream.read() if stream is not None else b""


async def _end(process: asyncio.subprocess.Process) -> None:
    """kubectl keeps nothing that a kill could spoil."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


_AWAY: Final = re.compile(
    r"connection to the server|unable to connect to the server|\((ServiceUnavailable|Timeout|ServerTimeout"
    r"|TooManyRequests|InternalError)\)|EOF|connection reset|connection lost|i/o timeout|deadline exceeded"
    r"|TLS handshake timeout|currently unable to handle the request",
    re.IGNORECASE,
)
_LOG_LINE: Final = re.compile(r"^[EWI]\d{4} .*$\n?", re.MULTILINE)


def explain(complaint: str) -> KubectlError:
    """What kubectl wrote to standard error → the exception to raise."""
    text = " ".join(_LOG_LINE.sub("", complaint).split()) or " ".join(complaint.split()) or "kubectl failed silently"
    bare = re.sub(r"^(error: |Error from server \(\w+\): |Error from server: )", "", text)
    if "(Forbidden)" in text:
        return Forbidden(f"no permission: {bare}")
    if "(Unauthorized)" in text:
        return Forbidden(f"the cluster does not accept the credentials: {bare}")
    if "could not find the requested resource" in text or "doesn't have a resource type" in text:
        return KindMissing(
            f"this cluster does not serve {GROUP}/v1beta1: install KubeEdge's definitions, "
            "for example with: kubetwin crds | kubectl apply -f -"
        )
    if "(NotFound)" in text:
        return ObjectMissing(bare)
    if _AWAY.search(text):
        return ApiAway(f"the Kubernetes API does not answer: {bare}")
    return KubectlError(f"kubectl: {bare}")
