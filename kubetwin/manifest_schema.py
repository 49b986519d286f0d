"""Manifests against the schema that the API server applies, in words for those who write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from kubetwin.manifests import KINDS, Finding, Source

if TYPE_CHECKING:
    from kubetwin.apiserver.schema import StructuralSchema

__all__ = ["check_metadata", "check_schema", "missing_library", "suggestion"]

Schema = Mapping[str, Any]
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_NOWHERE: Final = object()


def check_schema(source: Source) -> Iterator[Finding]:
    """Fields that would be dropped, and values that would be refused; nothing where `missing_library` is."""
    definitions, _ = _definitions()
    if source.kind not in definitions:
        return
    written, schema = definitions[source.kind]
    kept, unknown = schema.prune(dict(source.content))
    for path in unknown:
        parent, _, name = path.rpartition(".")
        meant = suggestion(name, _fields(written, parent))
        yield source.finding(f"{path}: no such field; the API server would drop it{meant}")
    for problem in schema.validate(schema.default(kept)):
        message = _plain(problem.path, problem.message, source.content)
        yield Finding(source.file, source.name, problem.path, message)


def check_metadata(source: Source) -> Iterator[Finding]:
    """Names, labels and annotations that the API server would refuse."""
    from kubetwin.apiserver import names

    try:
        metadata, unknown = names.read_metadata(dict(source.content))
    except ValueError as error:
        yield source.finding(str(error))
        return
    for path in unknown:
        meant = suggestion(path.removeprefix("metadata."), ("name", "namespace", "labels", "annotations"))
        yield source.finding(f"{path}: no such field; the API server would drop it{meant}")
    for path, _, message in names.check_metadata(metadata):
        yield Finding(source.file, source.name, path, message)


def missing_library() -> str:
    """The library without which the schema cannot be applied, on a small install; empty when all is there."""
    return _definitions()[1]


def suggestion(name: str, known: Collection[str], *, otherwise: str | None = None) -> str:
    """The known name that may have been meant, to follow a problem: `: did you mean port?`. Else all of them, or
    `otherwise`."""
    by_lower = {k.lower(): k for k in known}
    if close := get_close_matches(name.lower(), by_lower, n=1):
        return f": did you mean {by_lower[close[0]]}?"
    if otherwise is not None or not known:
        return otherwise or ""
    return f"; there {'is' if len(known) == 1 else 'are'} {', '.join(known)}"


@cache
def _definitions() -> tuple[Mapping[str, tuple[Schema, StructuralSchema]], str]:
    """By kind, the schema as it is written and as it is applied; and the library that is missing for it."""
    try:
        from cloudcore import crds
        from kubetwin.apiserver.schema import compile_schema
    except ModuleNotFoundError as error:
        return {}, str(error.name)
    written = {d["spec"]["names"]["kind"]: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for d in crds.load()}
    return {kind: (written[kind], compile_schema(written[kind])) for kind in KINDS}, ""


def _fields(schema: Schema, path: str) -> list[str]:
    """The fields that an object at that path may have."""
    for name, _ in _STEP.findall(path):
        schema = schema.get("properties", {}).get(name, {}) if name else schema.get("items", {})
    return list(schema.get("properties", ()))


def _plain(path: str, message: str, content: Mapping[str, Any]) -> str:
    """The API server repeats the path, and says "string" where it means the value."""
    _, in_body, detail = message.partition(f"{path} in body ")
    value = _value_at(content, path)
    if not in_body or isinstance(value, dict | list) or value is _NOWHERE:
        return message.replace(f"{path} in body ", "")
    shown = repr(value[:64]) if isinstance(value, str) else str(value)
    must_be = re.fullmatch(r'must be of type (\w+): "\w+"', detail)
    if must_be is None:
        return f"{shown} is not accepted: it {detail}"
    quotes = ": put it in quotes" if must_be[1] == "string" else ""
    return f"{shown} is not accepted: it must be of type {must_be[1]}{quotes}"


def _value_at(content: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        try:
            content = content[name] if name else content[int(index)]
        except (KeyError, IndexError, TypeError):
            return _NOWHERE
    return content
