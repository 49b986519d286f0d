"""Configuration that upstream changes or refuses on its way to the mapper."""

from typing import Any

import pytest

from dmi import device_from_crd
from dmi._pb import api_pb2 as pb
from dmi.wire import device_from_pb, device_to_pb


@pytest.mark.parametrize(
    "config",
    (
        {"address": 2**24 + 1, "serial": 2**63 - 1, "low": -(2**63)},
        {"data": 5, "type": "x", "value": True},
        {"data": "text"},
        {"gain": 0.5, "": "empty key", "label": "ü =+/ {}"},
    ),
)
def test_it_arrives_as_it_was_declared(config: dict[str, Any]) -> None:
    visitors = {"protocolName": "modbus", "configData": config}
    declared = device_from_crd(
        {
            "metadata": {"name": "d", "namespace": "n"},
            "spec": {
                "deviceModelRef": {"name": "m"},
                "nodeName": "edge-1",
                "protocol": {"protocolName": "modbus", "configData": config},
                "properties": [{"name": "p", "visitors": visitors}],
            },
        }
    )
    arrived = device_from_pb(pb.Device.FromString(device_to_pb(declared).SerializeToString()))
    assert arrived.protocol_config == config
    visitor = arrived.properties[0].visitor
    assert visitor is not None
    assert visitor.config == config
