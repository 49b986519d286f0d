"""What the Kubernetes API can answer, shaped by what the caller does next."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeConfigError",
    "KubeError",
    "NotFound",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "error_for",
]


class KubeError(Exception):
    """Base of everything the API client raises. The text is the server's own, with the request before it."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, or the `code` of a Status object in a watch; 0: there was no answer."""
        self.reason = reason
        """The API's one word, such as `NotFound`."""
        self.retry_after_s = retry_after_s
        """What the server asked for; 0: nothing."""


class KubeConfigError(KubeError):
    """The kubeconfig, or the service account of the pod, cannot be used. Retrying will not help."""


class NotFound(KubeError):
    """404: no such object, or no such kind (its CRD is not installed)."""


class Conflict(KubeError):
    """409: the object changed since it was read."""


class AlreadyExists(KubeError):
    """409 on create."""


class Gone(KubeError):
    """410: the resource version is too old to watch from, or the page token too old to go on: list again."""


class Invalid(KubeError):
    """400, 413, 415, 422: the server will not take this object as it is."""


class Forbidden(KubeError):
    """403: the role lacks a rule. Somebody has to grant it, so keep trying slowly."""


class Unauthorized(KubeError):
    """401: the credentials have expired or were never good."""


class TooManyRequests(KubeError):
    """429: slow down by `retry_after_s`."""


class Unavailable(KubeError):
    """5xx, or no connection, or no answer in time: try again."""


_BY_STATUS: Final[dict[int, type[KubeError]]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: TooManyRequests,
}


class _Status(Struct):
    message: str = ""
    reason: str = ""
    code: int = 0


def error_for(status: int, body: bytes, *, what: str, retry_after: str | None = None) -> KubeError:
    """The error for an answer that is no success. `what` was asked, such as `patch devicestatuses default/d`."""
    try:
        parsed = msgspec.json.decode(body, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        parsed = _Status(message=body[:200].decode(errors="replace"))
    status = status or parsed.code or 500  # an ERROR event that does not say what it is: an answer all the same
    type_ = _BY_STATUS.get(status, Unavailable if status >= 500 else KubeError)
    if status == 409 and parsed.reason == "AlreadyExists":
        type_ = AlreadyExists
    return type_(
        f"{what}: {parsed.message or parsed.reason or 'no reason given'} (HTTP {status})",
        status=status,
        reason=parsed.reason,
        retry_after_s=float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0,
    )
