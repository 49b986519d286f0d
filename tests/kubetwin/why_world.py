"""Evidence of a device that is well in every respect, and ways to spoil it."""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from cloudedge.facts import DeviceFacts, MapperFacts, PropertyFacts, spec_digest
from kubetwin.why.evidence import ApiEnd, CloudEnd, EdgeEnd, Evidence

NOW = 1_790_000_000_000
NODE = "edge-1"

_DEVICE: dict[str, Any] = {
    "metadata": {
        "namespace": "default",
        "name": "boiler-1",
        "resourceVersion": "12",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {
        "deviceModelRef": {"name": "boiler"},
        "nodeName": NODE,
        "protocol": {"protocolName": "modbus", "configData": {}},
        "properties": [
            {"name": "temperature", "reportToCloud": True},
            {"name": "set-point", "reportToCloud": True, "desired": {"value": "60"}},
        ],
    },
}
_MODEL: dict[str, Any] = {
    "metadata": {"namespace": "default", "name": "boiler", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {
        "protocol": "modbus",
        "properties": [
            {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly"},
            {"name": "set-point", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "90"},
        ],
    },
}
_STATUS: dict[str, Any] = {
    "status": {
        "state": "online",
        "twins": [
            {
                "propertyName": "temperature",
                "reported": {"value": "21.5", "metadata": {"timestamp": str(NOW - 500), "type": "float"}},
                "observedDesired": {"value": ""},
            },
            {
                "propertyName": "set-point",
                "reported": {"value": "60", "metadata": {"timestamp": str(NOW - 500), "type": "int"}},
                "observedDesired": {"value": "60", "metadata": {"timestamp": str(NOW - 9000), "write": "applied"}},
            },
        ],
        "extensions": {
            "summary": "temperature=21.5",
            "since": "2026-01-01T00:00:00Z",
            "conditions": [
                {"type": "NodeConnected", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Online", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ],
        },
    },
}
MAPPER = MapperFacts(
    "modbus-mapper", "modbus", answering=True, registered_ms=NOW - 60_000, heard_ms=NOW - 200, handed="current"
)
FACTS = DeviceFacts(
    node=NODE,
    device="default/boiler-1",
    now_ms=NOW,
    declared=True,
    declared_version="12",
    protocol="modbus",
    model="boiler",
    cloud_url="wss://cloud:10000",
    cloud_connected=True,
    cloud_since_ms=NOW - 60_000,
    spec_digest=spec_digest(_DEVICE["spec"]),
    model_digest=spec_digest(_MODEL["spec"]),
    mapper=MAPPER,
    other_mappers=("modbus/modbus-mapper",),
    last_report_ms=NOW - 500,
    last_state_ms=NOW - 60_000,
    state="online",
    state_since_ms=NOW - 60_000,
    properties={
        "temperature": PropertyFacts(collected_ms=NOW - 500, value="21.5"),
        "set-point": PropertyFacts(collected_ms=NOW - 500, value="60", desired="60", write="applied"),
    },
)


def device(**spec: Any) -> dict[str, Any]:
    obj = copy.deepcopy(_DEVICE)
    obj["spec"].update(spec)
    return obj


def model(*changes: dict[str, Any]) -> dict[str, Any]:
    obj = copy.deepcopy(_MODEL)
    for property_, change in zip(obj["spec"]["properties"], changes, strict=False):
        property_.update(change)
    return obj


def status(**changes: Any) -> dict[str, Any]:
    obj = copy.deepcopy(_STATUS)
    obj["status"].update(changes)
    return obj


def facts(**changes: Any) -> DeviceFacts:
    return msgspec.structs.replace(FACTS, **changes)


def with_property(name: str, **changes: Any) -> DeviceFacts:
    changed = msgspec.structs.replace(FACTS.properties[name], **changes)
    return facts(properties={**FACTS.properties, name: changed})


def with_mapper(**changes: Any) -> DeviceFacts:
    return facts(mapper=msgspec.structs.replace(MAPPER, **changes))


API = ApiEnd(server="https://api:6443", device=device(), model=model(), status=status())


def api(**changes: Any) -> ApiEnd:
    return msgspec.structs.replace(API, **changes)


def evidence(**changes: Any) -> Evidence:
    """With both ends seen. `facts`: what both the socket and the question brought."""
    known = changes.pop("facts", FACTS)
    base = Evidence(
        namespace="default",
        name="boiler-1",
        now_ms=NOW,
        api=API,
        cloud=CloudEnd(facts=known, clock_ahead_s=0.0),
        edge=EdgeEnd(socket="/run/edgecore.sock", facts=known, clock_ahead_s=0.0),
    )
    return msgspec.structs.replace(base, **changes)


def cloud_half(**changes: Any) -> Evidence:
    """As seen by somebody with kubectl only, and a CloudCore and EdgeCore that answer nothing."""
    base = {"cloud": CloudEnd(silent_s=3.0), "edge": EdgeEnd(absent="not here")}
    return evidence(**{**base, **changes})


def edge_half(**changes: Any) -> Evidence:
    """As seen on the gateway, without kubectl."""
    base = {"api": ApiEnd(absent="kubectl is not installed"), "cloud": CloudEnd(absent="no API")}
    return evidence(**{**base, **changes})
