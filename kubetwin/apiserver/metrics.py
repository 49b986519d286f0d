"""Counters of the server in Prometheus text, under kube-apiserver's names where it has one."""

from __future__ import annotations

from collections import Counter

from kubetwin.apiserver.store import Store


class Metrics:
    """What was asked, and how watches fare."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str, int]] = Counter()  # verb, group, resource, code
        self.watches: Counter[str] = Counter()  # open now, by resource
        self.dropped_watches = 0

    def text(self, store: Store) -> str:
        """The page a scraper reads."""
        lines = [
            "# HELP apiserver_request_total Requests answered, a watch when it ends.",
            "# TYPE apiserver_request_total counter",
        ]
        for (verb, group, resource, code), count in sorted(self.requests.items()):
            lines.append(
                f'apiserver_request_total{{verb="{verb}",group="{group}",resource="{resource}",code="{code}"}} {count}'
            )
        lines += ["# HELP apiserver_registered_watchers Watches open.", "# TYPE apiserver_registered_watchers gauge"]
        lines += [
            f'apiserver_registered_watchers{{resource="{name}"}} {count}'
            for name, count in sorted(self.watches.items())
        ]
        lines += ["# HELP apiserver_storage_objects Objects stored.", "# TYPE apiserver_storage_objects gauge"]
        lines += [
            f'apiserver_storage_objects{{resource="{name}"}} {count}' for name, count in sorted(store.counts().items())
        ]
        lines += [
            "# HELP apiserver_terminated_watchers_total Watches cut because their client read too slowly.",
            "# TYPE apiserver_terminated_watchers_total counter",
            f"apiserver_terminated_watchers_total {self.dropped_watches}",
            "# HELP kubetwin_apiserver_resource_version Version of the newest write.",
            "# TYPE kubetwin_apiserver_resource_version gauge",
            f"kubetwin_apiserver_resource_version {store.version}",
        ]
        return "\n".join(lines) + "\n"
