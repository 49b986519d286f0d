"""A thin API client: requests and answers stay plain JSON, the library gives TLS, credentials and connections.

The library's typed models are not used: they cost memory and time per object, and lose members they do not know.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException
from msgspec import Struct

from cloudcore.kube.config import load_configuration
from cloudcore.kube.decoding import Decoding
from cloudcore.kube.errors import Unauthorized, Unavailable, error_for
from cloudcore.kube.objects import Key, Kind, Object, metadata_of
from cloudcore.kube.stream import EventStream
from cloudedge.errors import without_frames

__all__ = ["EVERYTHING", "KubeClient", "Page", "Scope"]

logger = logging.getLogger(__name__)

PAGE_OBJECTS: Final = 500
REQUEST_TIMEOUT_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 10.0
_RELOAD_INTERVAL_S: Final = 10.0
_decoder: Final = msgspec.json.Decoder()


class Scope(Struct, frozen=True):
    """Which objects of a kind a list or watch is about; selectors as in the API's query."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""
    metadata_only: bool = False
    """Ask for names, versions and labels alone; what the objects hold stays at the server."""

    def query(self) -> dict[str, str]:
        return {
            name: value for name, value in (("labelSelector", self.labels), ("fieldSelector", self.fields)) if value
        }


EVERYTHING: Final = Scope()
_METADATA: Final = "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1"


class Page(Struct, frozen=True):
    """One page of a list."""

    items: list[Object]
    resource_version: str
    continue_token: str
    """For the next page; empty on the last."""


class KubeClient:
    """`async with await KubeClient.open(...) as client`. Every method raises a `KubeError` on failure."""

    def __init__(
        self, configuration: Any, *, kubeconfig: str = "", master: str = "", qps: float = 0.0, burst: int = 1
    ) -> None:
        self._configuration = configuration
        self._source = {"kubeconfig": kubeconfig, "master": master}
        self._rest: Any = RESTClientObject(configuration)
        self._limiter = _TokenBucket(qps, burst)
        self._reloaded_at = time.monotonic()
        self._decoding = Decoding()

    @classmethod
    async def open(cls, *, kubeconfig: str = "", master: str = "", qps: float = 0.0, burst: int = 1) -> Self:
        """`qps` 0: no limit of our own.

        Raises:
            KubeConfigError: See `load_configuration`.
        """
        configuration = await load_configuration(kubeconfig=kubeconfig, master=master)
        return cls(configuration, kubeconfig=kubeconfig, master=master, qps=qps, burst=burst)

    @property
    def server(self) -> str:
        return str(self._configuration.host)

    async def list_page(
        self, kind: Kind, *, scope: Scope = EVERYTHING, limit: int = PAGE_OBJECTS, continue_token: str = ""
    ) -> Page:
        """One page of the objects of a kind; without a token from the newest state."""
        query = {"limit": str(limit), **scope.query()}
        if continue_token:
            query["continue"] = continue_token
        accept = _METADATA.format(list="List") if scope.metadata_only else "application/json"
        answer = await self._call(
            "GET", kind.path(scope.namespace), what=f"list {kind.plural}", query=query, accept=accept
        )
        metadata, items = metadata_of(answer), answer.get("items", "")
        if items is None:  # as Go may write an empty one
            items = []
        # Whatever else a proxy says with a 200 must not be taken for "there are none": that would delete all there are.
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Unavailable(f"list {kind.plural}: the answer is no list")
        return Page(
            items=items,
            resource_version=str(metadata.get("resourceVersion") or ""),
            continue_token=str(metadata.get("continue") or ""),
        )

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        timeout_s: int,
        read_timeout_s: float,
        scope: Scope = EVERYTHING,
    ) -> EventStream:
        """Changes since `resource_version`, with bookmarks, until the server ends it after `timeout_s`.

        `read_timeout_s`: longest silence before the connection counts as dead.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_s),
            **scope.query(),
        }
        what = f"watch {kind.plural}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
        accept = _METADATA.format(list="") if scope.metadata_only else "application/json"
        response = await self._request(
            "GET", kind.path(scope.namespace), what=what, query=query, timeout=timeout, accept=accept
        )
        return EventStream(response, what, self._decoding)

    async def get(self, kind: Kind, key: Key) -> Object:
        return await self._call("GET", kind.path(key.namespace, key.name), what=f"get {kind.plural} {key}")

    async def create(self, kind: Kind, obj: Object) -> Object:
        """Returns the object as stored."""
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        what = f"create {kind.plural} {Key(namespace, metadata['name'])}"
        return await self._call("POST", kind.path(namespace), what=what, body=obj)

    async def replace(self, kind: Kind, key: Key, obj: Object, *, subresource: str = "") -> Object:
        """PUT; `Conflict` when the object's resourceVersion is not the stored one. Returns the object as stored."""
        path = kind.path(key.namespace, key.name) + (f"/{subresource}" if subresource else "")
        return await self._call("PUT", path, what=f"replace {kind.plural} {key}", body=obj)

    async def patch(
        self, kind: Kind, key: Key, patch: Object, *, subresource: str = "", strategic: bool = False
    ) -> Object:
        """JSON merge patch, or a strategic one for the built-in kinds. Returns the object as stored."""
        return await self._call(
            "PATCH",
            kind.path(key.namespace, key.name) + (f"/{subresource}" if subresource else ""),
            what=f"patch {kind.plural} {key}",
            body=patch,
            content_type=f"application/{'strategic-' if strategic else ''}merge-patch+json",
        )

    async def request_of(self, kind: Kind, key: Key, subresource: str, obj: Object) -> Object:
        """POST to a subresource that is a question of its own, such as a service account's `token`."""
        path = f"{kind.path(key.namespace, key.name)}/{subresource}"
        return await self._call("POST", path, what=f"create {kind.plural}/{subresource} {key}", body=obj)

    def ca_pem(self) -> bytes:
        """The CA that vouches for the API server, as far as the kubeconfig or the pod says; may be empty. Reads it.

        Raises:
            OSError: It is in a file, and that cannot be read.
        """
        if data := self._configuration.ca_cert_data:
            return data if isinstance(data, bytes) else str(data).encode()
        file = self._configuration.ssl_ca_cert
        return Path(file).read_bytes() if file else b""

    async def delete(
        self, kind: Kind, key: Key, *, uid: str = "", version: str = "", grace_s: int | None = None
    ) -> None:
        """With `uid` only that very object, with `version` as it was then; else `Conflict`. `grace_s`: for pods."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        conditions = {name: value for name, value in (("uid", uid), ("resourceVersion", version)) if value}
        if conditions:
            body["preconditions"] = conditions
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        await self._call("DELETE", kind.path(key.namespace, key.name), what=f"delete {kind.plural} {key}", body=body)

    async def close(self) -> None:
        await self._rest.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        await self._limiter.take()
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
        response = await self._request(
            method, path, what=what, query=query, body=body, content_type=content_type, accept=accept, timeout=timeout
        )
        try:
            answer = self._decoding.decode(await response.read(), what, _decoder)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{what}: connection lost in the answer: {_text(error)}") from without_frames(error)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(f"{what}: the answer is not JSON: {error}") from error
        finally:
            response.release()
        if not isinstance(answer, dict):
            raise Unavailable(f"{what}: the answer is not an object")
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        *,
        what: str,
        timeout: aiohttp.ClientTimeout,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """The response once its status is a success; its body is still to be read, and it to be released."""
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "kubetwin-cloudcore"}
        if token := await self._bearer(what):
            headers["Authorization"] = token
        url = str(self._configuration.host) + urllib.parse.quote(path)
        if query:
            url += "?" + urllib.parse.urlencode(query)
        try:
            answer = await self._rest.request(method, url, headers=headers, body=body, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            if response.status < 400:
                return response
            problem = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            silence = f"{what}: {self._configuration.host} does not answer: {_text(error)}"
            raise Unavailable(silence) from without_frames(error)
        response.release()
        failure = error_for(response.status, problem, what=what, retry_after=response.headers.get("Retry-After"))
        if isinstance(failure, Unauthorized):
            await self._reload_credentials()
        try:
            raise failure
        finally:
            del failure  # or it and its traceback hold one another, and the answer, until there is a garbage collection

    async def _bearer(self, what: str) -> str:
        """In a pod the library reads the token's file anew every minute. That may fail for a moment, as everything does
        that needs a file descriptor when nodes have taken all.
        """
        try:
            return await self._configuration.get_api_key_with_prefix("BearerToken") or ""
        except (OSError, ConfigException) as error:
            raise Unavailable(f"{what}: the token for {self.server} cannot be read: {_text(error)}") from error

    async def _reload_credentials(self) -> None:
        """A token file, or the kubeconfig itself, may have been replaced while we ran."""
        now = time.monotonic()
        if now - self._reloaded_at < _RELOAD_INTERVAL_S:
            return
        self._reloaded_at = now
        fresh = await load_configuration(**self._source)
        self._configuration.api_key = fresh.api_key
        logger.info("credentials for %s loaded again after they were refused", self.server)


class _TokenBucket:
    """`rate` requests a second on average, `burst` at once; waiting is in order of asking."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = max(1, burst)
        self._free_at = time.monotonic() - self._burst / rate if rate else 0.0
        """When the bucket, refilled steadily, would have been empty: each request moves it by 1/rate."""

    async def take(self) -> None:
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - self._burst / self._rate) + 1 / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
