"""The evidence, read: typed, with the better of two witnesses chosen. Pure; odd input counts as absent."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from cloudedge.facts import DeviceFacts
from dmi import ConfigError, Desired, Device, DeviceModel, Problem, Reported, Twin, check_device
from dmi.crd import device_from_crd, model_from_crd
from dmi.freshness import epoch_ms, unsaid_since_ms
from kubetwin.lenient import items, mapping, text
from kubetwin.why.evidence import Evidence, Json

__all__ = ["Seen", "StatusView", "declared_problems", "read_status", "see"]

_OURS: Final = frozenset({"summary", "reason", "problems", "conditions", "since"})


class StatusView(Struct, frozen=True):
    """What a DeviceStatus says."""

    state: str = ""
    reason: str = ""
    since_ms: int = 0
    twins: dict[str, Twin] = {}
    conditions: dict[str, str] = {}
    """Status by type."""
    ours: bool = False
    """Written by a CloudCore that answers questions."""
    changed_ms: dict[str, int] = {}
    """When a condition last changed, by type."""

    def has(self, condition: str, status: str) -> bool:
        return self.conditions.get(condition) == status


class Seen(Struct, frozen=True):
    evidence: Evidence
    node: str
    device: Device | None
    model: DeviceModel | None
    invalid: str
    """Why Device or DeviceModel cannot be read."""
    status: StatusView | None
    facts: DeviceFacts | None
    facts_from: Literal["", "edge core", "CloudCore"]
    elsewhere: str
    """The node of the edge core that runs here, when the device belongs to another."""
    property_names: tuple[str, ...]
    """In the order of the manifest; without it, as edge core has them."""

    def age_s(self, at_ms: int) -> float | None:
        """Of something noted by the API's side."""
        return _age_s(self.evidence.now_ms, at_ms)

    def edge_age_s(self, at_ms: int) -> float | None:
        """Of something noted by the edge, by the edge's own clock."""
        return _age_s(self.facts.now_ms if self.facts is not None else self.evidence.now_ms, at_ms)


def _age_s(now_ms: int, at_ms: int) -> float | None:
    return max(0.0, (now_ms - at_ms) / 1000) if at_ms > 0 else None


def see(evidence: Evidence) -> Seen:
    device, model, invalid = _declaration(evidence)
    declared_node = text(evidence.api.device or {}, "spec", "nodeName")
    local, remote = evidence.edge.facts, evidence.cloud.facts
    elsewhere = ""
    if local is not None and declared_node and local.node != declared_node:
        elsewhere, local = local.node, None
    facts = local or remote
    status = read_status(evidence.api.status) if evidence.api.status is not None else None
    names = tuple(p.name for p in device.properties) if device is not None else ()
    if not names and evidence.api.device is None:
        names = tuple(facts.properties) if facts is not None else ()
    return Seen(
        evidence=evidence,
        node=declared_node if evidence.api.device is not None else _node_by_word(facts),
        device=device,
        model=model,
        invalid=invalid,
        status=status,
        facts=facts,
        facts_from="" if facts is None else "edge core" if local is not None else "CloudCore",
        elsewhere=elsewhere,
        property_names=names,
    )


def _node_by_word(facts: DeviceFacts | None) -> str:
    return facts.node if facts is not None and facts.declared else ""


def _declaration(evidence: Evidence) -> tuple[Device | None, DeviceModel | None, str]:
    device: Device | None = None
    model: DeviceModel | None = None
    try:
        if evidence.api.device is not None:
            device = device_from_crd(evidence.api.device)
        if evidence.api.model is not None:
            model = model_from_crd(evidence.api.model)
    except ConfigError as error:
        return device, None, str(error)
    return device, model, ""


def declared_problems(device: Device, model: DeviceModel) -> list[Problem]:
    """Where a device does not fit its model, its protocol included."""
    problems = []
    if not device.protocol:
        problems.append(Problem("NoProtocol", "spec.protocol.protocolName: is empty, so no mapper takes the device"))
    elif model.protocol and model.protocol != device.protocol:
        text = f"{device.protocol!r} is not {model.protocol!r}, which DeviceModel {model.id} is for"
        problems.append(Problem("ProtocolMismatch", f"spec.protocol.protocolName: {text}"))
    return problems + check_device(device, model)


def read_status(obj: Json) -> StatusView:
    status = mapping(obj, "status")
    extensions = mapping(status, "extensions")
    conditions = items(extensions, "conditions")
    is_unsaid = unsaid_since_ms(conditions) > 0  # then state and reason are no more than that
    return StatusView(
        state="" if is_unsaid else text(status, "state"),
        reason="" if is_unsaid else text(extensions, "reason"),
        since_ms=epoch_ms(extensions.get("since")),
        twins={name: _twin(name, item) for item in items(status, "twins") if (name := text(item, "propertyName"))},
        conditions={text(c, "type"): text(c, "status") for c in conditions},
        ours=bool(_OURS & extensions.keys()),
        changed_ms={text(c, "type"): epoch_ms(c.get("lastTransitionTime")) for c in conditions},
    )


def _twin(name: str, item: Json) -> Twin:
    reported, desired = mapping(item, "reported"), mapping(item, "observedDesired")
    return Twin(
        name,
        Reported.from_metadata(text(reported, "value"), mapping(reported, "metadata")),
        Desired.from_metadata(text(desired, "value"), mapping(desired, "metadata")),
    )
