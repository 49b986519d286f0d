"""Which topics edge core takes from local brokers, and where each belongs (device contract 4.4)."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

__all__ = [
    "MAX_TOPIC_BYTES",
    "TWIN_FILTERS",
    "UPLOAD_FILTERS",
    "DeviceTopic",
    "destination",
    "device_topic",
    "filter_problem",
    "matches",
    "topic_problem",
    "twin_update",
]

DEVICE_PREFIX: Final = "$hw/events/device/"
NODE_PREFIX: Final = "$hw/events/node/"

TWIN_FILTERS: Final = (
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/node/+/membership/get",
)
UPLOAD_FILTERS: Final = ("$hw/events/upload/#", "SYS/dis/upload_records", "+/user/#")

MAX_TOPIC_BYTES: Final = 1024
"""MQTT's own limit is 64 KiB; nobody means that."""


class DeviceTopic(Struct, frozen=True):
    """`$hw/events/device/<namespace>/<name>/<action>`."""

    namespace: str
    name: str
    action: str
    """Such as `twin/update`."""

    def result(self) -> str:
        """Where an app finds the answer."""
        return f"{DEVICE_PREFIX}{self.namespace}/{self.name}/{self.action}/result"


def device_topic(topic: str) -> DeviceTopic | None:
    """The parts of a topic of a device; None for any other. A namespace may have any name (device contract W10)."""
    if not topic.startswith(DEVICE_PREFIX):
        return None
    parts = topic[len(DEVICE_PREFIX) :].split("/", 2)
    return DeviceTopic(*parts) if len(parts) == 3 and all(parts) else None


def twin_update(namespace: str, name: str) -> str:
    return f"{DEVICE_PREFIX}{namespace}/{name}/twin/update"


def destination(topic: str, stored: tuple[str, ...] = ()) -> Literal["twin", "cloud"] | None:
    """Who takes a message: the device twin, the cloud, or nobody. `stored`: filters that the cloud subscribed to."""
    if any(matches(topic, one) for one in TWIN_FILTERS):
        return "twin"
    if any(matches(topic, one) for one in UPLOAD_FILTERS):
        return "cloud"
    if any(matches(topic, one) for one in stored):
        return "twin" if topic.startswith((DEVICE_PREFIX, NODE_PREFIX)) else "cloud"
    return None


def matches(topic: str, filter_: str) -> bool:
    """MQTT 3.1.1, 4.7: `+` is one level, `#` all that follow, and neither stands for a first level with `$`."""
    if topic.startswith("$") and filter_.startswith(("+", "#")):
        return False
    levels, wanted = topic.split("/"), filter_.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(levels) == len(wanted) and all(want in ("+", level) for level, want in zip(levels, wanted, strict=True))


def topic_problem(topic: str) -> str:
    """Why nothing can be published there; empty: it can."""
    if not topic:
        return "it is empty"
    if "+" in topic or "#" in topic:
        return "it has + or #, which only a subscription may"
    return _text_problem(topic)


def filter_problem(filter_: str) -> str:
    """Why it cannot be subscribed to; empty: it can (MQTT 3.1.1, 4.7.1)."""
    if not filter_:
        return "it is empty"
    levels = filter_.split("/")
    if any("#" in level and (level != "#" or number < len(levels) - 1) for number, level in enumerate(levels)):
        return "# must be its whole last level"
    if any("+" in level and level != "+" for level in levels):
        return "+ must be a whole level"
    return _text_problem(filter_)


def _text_problem(text: str) -> str:
    if any(ord(sign) < 0x20 or 0x7F <= ord(sign) <= 0x9F or 0xD800 <= ord(sign) <= 0xDFFF for sign in text):
        return "it has control characters"
    if len(text.encode()) > MAX_TOPIC_BYTES:
        return f"it has more than {MAX_TOPIC_BYTES} bytes"
    return ""
