"""Traffic recorded between an upstream CloudCore and an upstream EdgeCore, and how ours is compared with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPTURE = Path(__file__).parents[1] / "data" / "captures" / "upstream-websocket.jsonl"
NODE = "edge1"
"""The node that was recorded."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One recorded message; `number` is its line in the file, from 0."""

    number: int
    up: bool
    msg: Json

    @property
    def route(self) -> tuple[str, str, str, str]:
        return route(self.msg)

    @property
    def parent(self) -> str:
        return str(self.msg["header"].get("parent_msg_id", ""))

    def __str__(self) -> str:
        return f"line {self.number}, {self.route[2]} {self.route[3]}"


def route(msg: Json) -> tuple[str, str, str, str]:
    """Source, group, operation, resource."""
    r = msg["route"]
    return r["source"], r["group"], r["operation"], r["resource"]


def handshake() -> Json:
    first: Json = json.loads(CAPTURE.read_text().splitlines()[0])
    assert first["dir"] == "handshake"
    return first


def lines() -> list[Line]:
    read = [json.loads(text) for text in CAPTURE.read_text().splitlines()]
    return [
        Line(number, line["dir"] == "edge->cloud", line["msg"])
        for number, line in enumerate(read)
        if line["dir"] != "handshake"
    ]


def line(number: int) -> Line:
    return next(one for one in lines() if one.number == number)


def differences(recorded: Any, ours: Any, *, without: frozenset[str] = frozenset(), path: str = "") -> list[str]:
    """Where `ours` lacks a member that was recorded, or has it with another JSON type.

    Members that we have besides are none: Go leaves them alone. `without`: members that are the API server's doing,
    wherever they are. Lists are compared by their first entries.
    """
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = []
        for name, value in recorded.items():
            here = f"{path}.{name}"
            if name in without:
                continue
            if name not in ours:
                found.append(f"{here} is missing")
            else:
                found += differences(value, ours[name], without=without, path=here)
        return found
    if isinstance(recorded, list) and isinstance(ours, list):
        if recorded and not ours:
            return [f"{path} is empty"]
        return differences(recorded[0], ours[0], without=without, path=f"{path}[0]") if recorded else []
    if _type(recorded) != _type(ours):
        return [f"{path} is {_type(ours)}, was {_type(recorded)}"]
    return []


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {dict: "object", list: "array", str: "string", type(None): "null"}.get(type(value), "number")
