"""The CustomResourceDefinitions that cloudcore needs, one YAML file each.

They accept what upstream's accept, add printer columns, short names and a category, and refuse what could never work:

- a device without `deviceModelRef.name`, and a property without a name or with a name taken twice: `properties` is a
  list of type map, keyed by name, so that server-side apply merges it property by property;
- negative cycles and timeouts, ports over 65535, a QoS other than 0, 1, 2;
- in a model, a `minimum` or `maximum` of a numeric property that is no decimal number, or a minimum over the maximum.

Limits that upstream lacks: 10,000 properties a model, 64 characters a minimum or maximum. They keep the estimated cost
of the CEL rules under the budget of an API server, which refuses the definition otherwise; an object of that many
properties is near the size that etcd stores anyway.

Nested values in `configData`, `protocolConfigData` and `anomalyDetection` are not refused here, although the edge
cannot use them: rules on a real API server do not see into fields that keep unknown content, and a schema can say "any
scalar" only with a message that misleads ("must have at most 0 items"). They are for the DeviceStatus to show. A device
without `protocolName` is accepted, for MQTT clients can serve its twins without a mapper.

Only v1beta1 is served. Over a cluster with upstream's definitions, keep those: they carry v1alpha2 too.
"""

from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

FILES: Final = ("devicemodels", "devices", "devicestatuses", "objectsyncs", "clusterobjectsyncs")

__all__ = ["FILES", "load", "render"]


def load() -> list[dict[str, Any]]:
    """The definitions as decoded objects, new ones at each call."""
    return [yaml.safe_load(text) for text in _texts()]


def render() -> str:
    """The definitions as one YAML text of several documents, for `kubectl apply -f -`."""
    return "---\n".join(_texts())


@cache
def _texts() -> tuple[str, ...]:
    folder = files(__name__)
    return tuple(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8") for name in FILES)
