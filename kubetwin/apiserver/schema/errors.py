"""Field errors in the words of the Kubernetes API, which kubectl prints as they are.

A message starts with the reason in words and the value at fault, `Invalid value: -1: …`, so that
`f"{error.path}: {error.message}"` is the line that a person reads.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

Reason = Literal[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
]

NO_PATH: Final = "<nil>"
"""The path of an error of the object as a whole, or of a combination of schemas."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with one field.

    `path` is in the form `spec.properties[0].type`; `reason` is the machine-readable cause that goes into
    `status.details.causes[]`; `message` is the rest of the line.
    """

    path: str
    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SchemaError(Exception):
    """A schema is not structural, or a rule in it does not compile. Nothing was compiled."""

    def __init__(self, problems: Iterable[FieldError]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def child(path: str, name: str) -> str:
    """The path of a declared field of `path`; the root is the empty path."""
    return f"{path}.{name}" if path else name


def quoted(value: Any) -> str:
    """A value as an error shows it: text in double quotes, the rest as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path, "FieldValueInvalid", f"Invalid value: {quoted(value)}: {detail}")


def invalid_whole(path: str, kind: str, detail: str) -> FieldError:
    """An error of an object or list as a whole, whose value would be too long to print."""
    return FieldError(path, "FieldValueInvalid", f'Invalid value: "{kind}": {detail}')


def wrong_type(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path, "FieldValueTypeInvalid", f"Invalid value: {quoted(value)}: {detail}")


def required(path: str, detail: str = "") -> FieldError:
    return FieldError(path, "FieldValueRequired", f"Required value: {detail}" if detail else "Required value")


def forbidden(path: str, detail: str) -> FieldError:
    return FieldError(path, "FieldValueForbidden", f"Forbidden: {detail}")


def not_supported(path: str, value: Any, allowed: Iterable[Any]) -> FieldError:
    words = ", ".join(quoted(word if isinstance(word, str) else quoted(word)) for word in allowed)
    return FieldError(path, "FieldValueNotSupported", f"Unsupported value: {quoted(value)}: supported values: {words}")


def duplicate(path: str, value: Any) -> FieldError:
    return FieldError(path, "FieldValueDuplicate", f"Duplicate value: {quoted(value)}")


def too_long(path: str, limit: int) -> FieldError:
    return FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")


def too_many(path: str, count: int, limit: int) -> FieldError:
    return FieldError(path, "FieldValueTooMany", f"Too many: {count}: must have at most {limit} items")
