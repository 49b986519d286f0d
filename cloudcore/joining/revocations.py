"""Who is shut out again: a list in a ConfigMap, `kubeedge/kubetwin-revoked` unless configured otherwise.

Each key is a name for people, each line of its value a node's name, `serial:<hex>` or `sha256:<hex>` of a certificate,
or `token:<hex>`, the SHA-256 of a join token; `#` begins a comment. A node's name shuts out all its certificates and
keeps it from getting others; a serial or a fingerprint one certificate, at the hub and where certificates are renewed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from cloudcore.joining.secrets import NAMESPACE
from cloudcore.kube import Informer, Key, Kind, KubeClient, Object, Scope
from cloudedge.tls import NODE_NAME
from dmi.metrics import Metrics

__all__ = ["DenyList", "Revocations", "parse"]

logger = logging.getLogger(__name__)

CONFIG_MAPS: Final = Kind(group="", version="v1", plural="configmaps", kind="ConfigMap")
_HEX: Final = re.compile(r"[0-9a-f]{1,64}")


class DenyList(Struct, frozen=True):
    nodes: frozenset[str] = frozenset()
    serials: frozenset[str] = frozenset()
    """Lower-case hex without leading zeros."""
    fingerprints: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()

    def refusal(self, node: str, certificate: Mapping[str, Any] | None) -> str:
        """Why the node, with what `tls.peer_certificate` gives, is shut out; empty: it is not."""
        if node in self.nodes:
            return f"node {node} is revoked"
        serial = str((certificate or {}).get("serialNumber", "")).lower().lstrip("0")
        if serial in self.serials:
            return f"the certificate with serial {serial} is revoked"
        if (certificate or {}).get("sha256", "") in self.fingerprints:
            return "this certificate is revoked"
        return ""

    def __len__(self) -> int:
        return len(self.nodes) + len(self.serials) + len(self.fingerprints) + len(self.tokens)


def parse(data: Mapping[str, Any]) -> tuple[DenyList, list[str]]:
    """The list of a ConfigMap's `data`, and the lines that say nothing, each with where it stands."""
    found: dict[str, set[str]] = {"node": set(), "serial": set(), "sha256": set(), "token": set()}
    unread = []
    for key, number, line in _lines(data):
        kind, colon, value = line.partition(":")
        kind, value = kind.strip().lower(), value.replace(":", "").replace(" ", "").lower().removeprefix("0x")
        if not colon:
            kind, value = "node", line
        value = value.lstrip("0") if kind == "serial" else value
        whole = kind not in ("sha256", "token") or len(value) == 64
        pattern = NODE_NAME if kind == "node" else _HEX
        if kind in found and whole and pattern.fullmatch(value):
            found[kind].add(value)
        else:
            unread.append(f"{key}, line {number}: {line[:80]!r}")
    lists = (frozenset(found[kind]) for kind in ("node", "serial", "sha256", "token"))
    return DenyList(*lists), unread


def _lines(data: Mapping[str, Any]) -> Iterable[tuple[str, int, str]]:
    for key, value in data.items():
        for number, line in enumerate(str(value).splitlines(), 1):
            if text := line.partition("#")[0].strip():
                yield key, number, text


class Revocations:
    """`run` it in a task; `current` is the list as the API server has it."""

    def __init__(
        self, client: KubeClient, name: str, *, changed: Callable[[], None], metrics: Metrics | None = None
    ) -> None:
        """`changed` is called after every change, for those who are in already."""
        self.current = DenyList()
        self._name = name
        self._changed = changed
        self._informer = Informer(client, CONFIG_MAPS, scope=Scope(namespace=NAMESPACE, fields=f"metadata.name={name}"))
        self._informer.subscribe(self._take)
        metrics = metrics or Metrics()
        metrics.gauge(
            "kubetwin_cloudcore_revocations",
            "Nodes, certificates and tokens that are shut out.",
            read=lambda: {(): len(self.current)},
        )
        self._unread = 0
        metrics.gauge(
            "kubetwin_cloudcore_revocations_unread",
            "Lines of the list of revocations that say nothing.",
            read=lambda: {(): self._unread},
        )

    @property
    def known(self) -> bool:
        """Whether the list has been read once."""
        return self._informer.synced.is_set()

    async def until_known(self) -> None:
        await self._informer.synced.wait()

    async def run(self) -> None:
        """Until cancelled. While the API server is away, the last list counts."""
        await self._informer.run()

    def _take(self, key: Key, _old: Object | None, new: Object | None) -> None:
        if key.name != self._name:
            return
        self.current, unread = parse((new or {}).get("data") or {})
        self._unread = len(unread)
        for line in unread[:20]:
            logger.error(
                "ConfigMap %s %s: neither a node's name, nor serial:, sha256: or token: and hex; it shuts nobody out",
                key,
                line,
            )
        logger.info("%d revocations in ConfigMap %s", len(self.current), key)
        self._changed()
