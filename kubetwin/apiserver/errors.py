"""Answers that are not a success, as Kubernetes `Status` objects.

One exception, `ApiError`, and one function per reason. The texts are the ones kube-apiserver uses, because kubectl
and client libraries show them as they are and some clients match on them.

Reference: Kubernetes API conventions, "Response Status Kind".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Cause(NamedTuple):
    """One reason for a refusal, with the path of the field it is about."""

    reason: str
    message: str
    field: str


class ApiError(Exception):
    """A request refused: an HTTP code and the `Status` that explains it."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> dict[str, Any]:
        """The `Status` object of this refusal."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def success(name: str, group: str, plural: str, uid: str) -> dict[str, Any]:
    """The `Status` that answers a finished delete."""
    details = {"name": name, "group": group, "kind": plural, "uid": uid}
    if not group:
        del details["group"]
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _about(group: str, kind: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in (("name", name), ("group", group), ("kind", kind)) if value}


def _qualified(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


def not_found(group: str, plural: str, name: str) -> ApiError:
    """404: there is no such object."""
    text = f'{_qualified(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", text, _about(group, plural, name))


def no_such_path() -> ApiError:
    """404: the path names nothing the server knows."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(group: str, plural: str, name: str) -> ApiError:
    """409 on create."""
    text = f'{_qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", text, _about(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str = "") -> ApiError:
    """409: the writer saw an older object than the stored one, or a precondition fails."""
    why = why or ("the object has been modified; please apply your changes to the latest version and try again")
    text = f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", text, _about(group, plural, name))


def forbidden(group: str, plural: str, name: str, why: str) -> ApiError:
    """403: never allowed, whoever asks."""
    text = f'{_qualified(group, plural)} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", text, _about(group, plural, name))


def invalid(group: str, kind: str, name: str, problems: Iterable[tuple[str, str, str]]) -> ApiError:
    """422 with one cause per `(path, reason, message)`; kubectl prints it as `The <Kind> "<name>" is invalid`."""
    causes: list[Cause] = []
    for path, reason, message in problems:
        causes.append(Cause(reason, message, path))
    lines = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    joined = lines[0] if len(lines) == 1 else "[" + ", ".join(lines) + "]"
    qualified = f"{kind}.{group}" if group else kind
    details = _about(group, kind, name)
    details["causes"] = [cause._asdict() for cause in causes]
    return ApiError(422, "Invalid", f'{qualified} "{name}" is invalid: {joined}', details)


def bad_request(message: str) -> ApiError:
    """400: the request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def strict_decoding(kind: str, version: str, unknown: Sequence[str]) -> ApiError:
    """400 for `fieldValidation=Strict`: fields the schema does not know."""
    fields = ", ".join(f'unknown field "{path}"' for path in unknown)
    return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: strict decoding error: {fields}')


def expired(message: str) -> ApiError:
    """410: the asked-for resourceVersion is no longer in the history. List again."""
    return ApiError(410, "Expired", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """504: the asked-for resourceVersion lies in the future."""
    text = f"Too large resource version: {asked}, current: {current}"
    causes = [Cause("ResourceVersionTooLarge", "Too large resource version", "")._asdict()]
    return ApiError(504, "Timeout", text, {"causes": causes, "retryAfterSeconds": 1})


def unauthorized() -> ApiError:
    """401: no bearer token, or not ours."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed(group: str, plural: str) -> ApiError:
    """405."""
    text = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", text, _about(group, plural, ""))


def not_acceptable(allowed: Sequence[str]) -> ApiError:
    """406: none of the media types the client accepts can be made."""
    text = "only the following media types are accepted: " + ", ".join(allowed)
    return ApiError(406, "NotAcceptable", text)


def unsupported_media_type(given: str, allowed: Sequence[str]) -> ApiError:
    """415."""
    text = f"the body of the request was in an unknown format ({given}) - accepted media types include: "
    return ApiError(415, "UnsupportedMediaType", text + ", ".join(allowed))


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def internal(why: str) -> ApiError:
    """500."""
    return ApiError(500, "InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]})
