"""The embedded Kubernetes API server of kubetwin: one process, one SQLite file, for one machine and for tests.

A real kubectl, CloudCore and other list-and-watch clients work against it without knowing. It stores, validates, lists
and watches; it runs no Pods.

- `storage`, `items`, `store`: objects on disk and in memory, resourceVersions, the event history
- `kinds`, `builtin`, `crd`, `schema`: what is served, and what an object must look like
- `names`, `admission`, `patches`, `objects`, `collector`: the writing verbs and what follows from them
- `selectors`, `views`, `columns`, `jsonpath`, `watches`, `reads`: the reading verbs
- `requests`, `protobuf`, `discovery`, `openapi`, `documents`, `errors`, `http`, `metrics`, `pki`, `server`: HTTP and
  the process

Where it differs from kube-apiserver, on purpose:

- One admin token; no other users, RBAC, admission plugins or audit log.
- HTTP/1.1; answers are JSON only. Bodies may be JSON, YAML and, for some built-in kinds, protobuf (see `protobuf`).
- Server-side apply (`application/apply-patch+yaml`) is answered 415, and `managedFields` are not kept.
- Strategic merge finds merge keys by field name (see `patches`), and built-in kinds keep fields they do not know.
- Definitions are established in the write that creates them; versions of a kind share one shape (only
  `conversion: None`); no `scale` subresource.
- A watch from a resourceVersion newer than the server's own is answered 410, not held back: after the data directory
  was replaced every client lists again at once.
- History is bounded by count and bytes for each resource (see `store`), not by time. All pages of a list, and lists
  at an older resourceVersion, are exact as long as it reaches back.
- A watch that reads too slowly is cut, not merely ended.
- Unknown fields under `fieldValidation=Strict` are a 400 for a patch too; duplicate keys in a body are not told.
- Deletion ignores grace periods, since nothing runs. An object whose owners do not exist is collected at once.
- No Event v1 of `events.k8s.io`, Services, Deployments and the like.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubetwin.apiserver.server import ApiServer, run, serve
    from kubetwin.apiserver.storage import StorageError

__all__ = ["ApiServer", "StorageError", "run", "serve"]


_HOMES = {"ApiServer": "server", "StorageError": "storage", "run": "server", "serve": "server"}


def __getattr__(name: str) -> Any:
    """The server when it is asked for: `kubetwin mapper check` needs the schemas alone, not what serves HTTP."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
