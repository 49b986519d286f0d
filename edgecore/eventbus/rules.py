"""Topic rules: what local apps may do with a device, and which topics of their own they meet it under.

No I/O: what is to be refused, published and written is decided here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

import msgspec
from msgspec import Struct

from cloudedge.message import now_ms
from dmi import ConfigError, DeviceId, Reported
from edgecore.config import TopicRule
from edgecore.eventbus.outbox import Outgoing
from edgecore.eventbus.topics import DeviceTopic, device_topic, filter_problem, matches, topic_problem, twin_update

__all__ = ["Rules", "Write", "refusal_payload"]

_NAMES: Final = ("namespace", "device", "property")
_CACHED_DEVICES: Final = 20_000
_READS: Final = frozenset({"twin/get"})
_WRITES: Final = frozenset({"twin/update", "twin/cloud_updated", "state/update"})
_DEFAULT: Final = TopicRule()


class Write(Struct, frozen=True):
    """An app's message on a rule's `write` topic, as an update of the twin."""

    topic: str
    payload: bytes


class _Template:
    """A topic with the names left open, each in a level of its own: `plant/{device}/{property}/set`."""

    def __init__(self, text: str, path: str, devices: str) -> None:
        self.text = text
        levels, patterns, seen = [], [], set()
        for level in text.split("/"):
            names = _names(level, path)
            seen.update(names)
            if len(names) > 1:
                raise ConfigError(path, f"{level!r} has two names in one level; put a / between them")
            levels.append("+" if names else level)
            patterns.append(_level_pattern(level, names))
        self.filter = "/".join(levels)
        if (problem := filter_problem(self.filter)) or (problem := _literal_problem(text, path)):
            raise ConfigError(path, f"{text!r}: {problem}")
        self._pattern = re.compile("/".join(patterns))
        namespace, slash, device = devices.partition("/")
        needed = {"property"}
        if not slash or _is_pattern(namespace):
            needed.add("namespace")
        if not slash or _is_pattern(device):
            needed.add("device")
        if missing := [name for name in _NAMES if name in needed - seen]:
            wanted = ", ".join(f"{{{name}}}" for name in missing)
            raise ConfigError(path, f"{text!r} does not say which twin it is about: it needs {wanted}")

    def fill(self, device: DeviceId, name: str) -> str | None:
        """The topic of one twin; None when a name would change the topic's shape."""
        namespace, _, device_name = device.partition("/")
        if any(sign in part for part in (device_name, name) for sign in "/+#\0") or not name:
            return None
        names = {"namespace": namespace, "device": device_name, "property": name}
        topic = re.sub(r"\{(\w+)\}", lambda found: names[found[1]], self.text)
        return None if topic_problem(topic) else topic

    def parse(self, topic: str, devices: str) -> tuple[DeviceId, str] | None:
        found = self._pattern.fullmatch(topic)
        if found is None:
            return None
        namespace, _, device = devices.partition("/")
        names = {"namespace": namespace, "device": device, **found.groupdict()}
        return DeviceId(f"{names['namespace']}/{names['device']}"), names["property"]

    def overlaps(self, other: _Template) -> bool:
        """Whether one topic could be of both."""
        mine, theirs = self.filter.split("/"), other.filter.split("/")
        return len(mine) == len(theirs) and all(a == b or "+" in (a, b) for a, b in zip(mine, theirs, strict=True))


class _Compiled(Struct, frozen=True, eq=False):
    rule: TopicRule
    publish: _Template | None
    write: _Template | None


class Rules:
    """Raises:
    ConfigError: A template cannot work, or an app's message could be two things.
    """

    def __init__(self, rules: tuple[TopicRule, ...], path: str = "modules.eventBus.topicRules") -> None:
        self._rules = [_compile(rule, f"{path}[{number}]") for number, rule in enumerate(rules)]
        self._default = _Compiled(_DEFAULT, None, None)
        self._of: dict[DeviceId, _Compiled] = {}
        _check_overlaps(self._rules, path)

    @property
    def publishes(self) -> bool:
        """Whether any rule has a topic for reported values."""
        return any(one.publish for one in self._rules)

    @property
    def filters(self) -> tuple[str, ...]:
        """What is to be subscribed to for `write`."""
        return tuple(dict.fromkeys(one.write.filter for one in self._rules if one.write))

    def of(self, device: DeviceId) -> TopicRule:
        return self._compiled(device).rule

    def refusal(self, topic: str) -> tuple[DeviceTopic, str] | None:
        """Why an app may not do what it asks for over upstream's topics; None: it may."""
        asked = device_topic(topic)
        if asked is None or asked.action not in _READS | _WRITES:
            return None
        device = DeviceId(f"{asked.namespace}/{asked.name}")
        match self.of(device).access:
            case "none":
                return asked, f"device {device} is not open to local apps (eventBus.topicRules: access none)"
            case "read" if asked.action in _WRITES:
                return asked, f"device {device} can only be read by local apps (eventBus.topicRules: access read)"
        return None

    def is_hidden(self, topic: str) -> bool:
        """Whether what edge core says under upstream's topic is kept from apps."""
        about = device_topic(topic)
        return about is not None and self.of(DeviceId(f"{about.namespace}/{about.name}")).access == "none"

    def publication(self, device: DeviceId, name: str, reported: Reported) -> Outgoing | str | None:
        """What local apps get of a reported value; a text: why there is no topic for it; None: no rule, or no value."""
        compiled = self._compiled(device)
        if compiled.publish is None or not (reported.value or reported.collected_ms):
            return None
        topic = compiled.publish.fill(device, name)
        if topic is None:
            return f"device {device}: property {name!r} cannot be part of topic {compiled.publish.text!r}"
        rule = compiled.rule
        payload = reported.value.encode(errors="replace") if rule.payload == "value" else _as_json(reported)
        return Outgoing(topic, payload, rule.qos, rule.retain)

    def clearance(self, device: DeviceId, name: str) -> Outgoing | None:
        """What takes a retained value away from the broker (MQTT 3.1.1, 3.3.1.3); None: none is retained."""
        compiled = self._compiled(device)
        if compiled.publish is None or not compiled.rule.retain:
            return None
        topic = compiled.publish.fill(device, name)
        return Outgoing(topic, b"", compiled.rule.qos, retain=True) if topic else None

    def says_quality(self, device: DeviceId) -> bool:
        """Whether apps are told how good the values of a device are."""
        compiled = self._compiled(device)
        return compiled.publish is not None and compiled.rule.payload == "json"

    def write(self, topic: str, payload: bytes) -> Write | None:
        """The update that a message on a `write` topic means; None: it is on none.

        Raises:
            UnicodeDecodeError: The value is no text.
        """
        for compiled in self._rules:
            template = compiled.write
            found = template.parse(topic, compiled.rule.devices) if template else None
            if found is not None and self._compiled(found[0]) is compiled:
                device, name = found
                update = {"twin": {name: {"expected": {"value": payload.decode()}}}}
                return Write(twin_update(*device.split("/", 1)), msgspec.json.encode(update))
        return None

    def _compiled(self, device: DeviceId) -> _Compiled:
        found = self._of.get(device)
        if found is None:
            found = next((one for one in self._rules if fnmatchcase(device, one.rule.devices)), self._default)
            if len(self._of) >= _CACHED_DEVICES:
                self._of.clear()
            self._of[device] = found
        return found


def refusal_payload(payload: bytes, reason: str) -> bytes:
    """A result of code 400, with the asker's event id if there is one."""
    try:
        event_id = msgspec.json.decode(payload, type=_Asked).event_id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        event_id = ""
    return msgspec.json.encode({"event_id": event_id, "timestamp": now_ms(), "code": 400, "reason": reason})


class _Asked(Struct, frozen=True):
    event_id: str = ""


def _compile(rule: TopicRule, path: str) -> _Compiled:
    if not rule.devices:
        raise ConfigError(f"{path}.devices", "it is empty; `*` is every device")
    publish, write = (
        _Template(text, f"{path}.{key}", rule.devices) if text else None
        for key, text in (("publish", rule.publish), ("write", rule.write))
    )
    return _Compiled(rule, publish, write)


def _check_overlaps(rules: list[_Compiled], path: str) -> None:
    writes = [(f"{path}[{n}].write", one.write) for n, one in enumerate(rules) if one.write]
    publishes = [(f"{path}[{n}].publish", one.publish) for n, one in enumerate(rules) if one.publish]
    for where, write in writes:
        for other, publish in publishes:
            if write.overlaps(publish):
                raise ConfigError(
                    where, f"{write.text!r} overlaps {other} {publish.text!r}: a value would come back as a write"
                )
        for other, second in writes:
            if second.text != write.text and write.overlaps(second):
                raise ConfigError(
                    where, f"{write.text!r} overlaps {other} {second.text!r}: a message could mean either"
                )


def _as_json(reported: Reported) -> bytes:
    body = {
        "value": reported.value,
        "type": reported.type,
        "collected": reported.collected_ms,
        "quality": reported.quality,
    }
    return msgspec.json.encode(body | ({"reason": reported.reason} if reported.reason else {}))


def _names(level: str, path: str) -> list[str]:
    """The names that a level leaves open."""
    try:
        fields = list(_fields(level))
    except ValueError as error:
        raise ConfigError(path, f"{level!r}: {error}") from error
    if unknown := [name for name in fields if name not in _NAMES]:
        raise ConfigError(path, f"{{{unknown[0]}}} is none of {{namespace}}, {{device}}, {{property}}")
    return fields


def _fields(level: str) -> Iterator[str]:
    for _, name, spec, conversion in string.Formatter().parse(level):
        if name is not None:
            if spec or conversion:
                raise ValueError("a name is filled in as it is; leave : and ! away")
            yield name


def _level_pattern(level: str, names: list[str]) -> str:
    if not names:
        return re.escape(level)
    before, after = level.split(f"{{{names[0]}}}")
    return f"{re.escape(before)}(?P<{names[0]}>[^/]+){re.escape(after)}"


def _literal_problem(text: str, path: str) -> str:
    if re.search(r"[+#]", text):
        return "wildcards are of no use here: write {namespace}, {device} or {property}"
    if text.startswith("$"):
        return "topics that begin with $ are edge core's and the broker's own"
    if text.split("/")[0] == "SYS":
        return "SYS/ is what edge core sends to the cloud"
    if path.endswith(".publish") and matches(re.sub(r"\{\w+\}", "x", text), "+/user/#"):
        return "<namespace>/user/ is what edge core sends to the cloud: each value would go there as well"
    names = re.findall(r"\{(\w+)\}", text)
    if len(names) != len(set(names)):
        return "each name can be there once"
    return ""


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")
