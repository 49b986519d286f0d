"""The Kubernetes API as cloudcore needs it: plain JSON objects, caches that follow the API, queues of keys."""

from cloudcore.kube.client import KubeClient, Page, Scope
from cloudcore.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeConfigError,
    KubeError,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from cloudcore.kube.informer import Informer
from cloudcore.kube.objects import Key, Kind, Object, identity, key_of, label, resource_version, spec_of
from cloudcore.kube.queue import KeyedQueue

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Forbidden",
    "Gone",
    "Informer",
    "Invalid",
    "Key",
    "KeyedQueue",
    "Kind",
    "KubeClient",
    "KubeConfigError",
    "KubeError",
    "NotFound",
    "Object",
    "Page",
    "Scope",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "identity",
    "key_of",
    "label",
    "resource_version",
    "spec_of",
]
