"""Virtual devices, declared in a line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import (
    Property,
)
from mappers.sdk.declaration import Declaration, declare

ID = DeviceId("lab/v1")

MODEL = DeviceModel(
    "lab",
    "virtual",
    properties=(ModelProperty("level", "FLOAT", "ReadOnly"), ModelProperty("set-point", "INT", maximum="100")),
)
DEVICE = Device(
    "lab",
    "v1",
    model="virtual",
    protocol="virtual",
    properties=(
        DeviceProperty("level", visitor=Visitor(config={"waveform": "constant", "value": 5}), report_to_cloud=True),
        DeviceProperty("set-point", report_to_cloud=True),
    ),
)
"""A device with something to read and something to write."""


def device_of(*properties: tuple[ModelProperty, Mapping[str, Scalar]], **config: Scalar) -> tuple[Device, DeviceModel]:
    model = DeviceModel("lab", "m", tuple(p for p, _ in properties))
    declared = tuple(
        DeviceProperty(p.name, visitor=Visitor(config=visitor), report_to_cloud=True, collect_cycle_ms=1000)
        for p, visitor in properties
    )
    return Device("lab", "v1", model="m", protocol="virtual", protocol_config=config, properties=declared), model


@asynccontextmanager
async def linked(
    driver: VirtualDriver, *properties: tuple[ModelProperty, Mapping[str, Scalar]], **config: Scalar
) -> AsyncIterator[tuple[Any, Mapping[str, Property[Any]]]]:
    declared: Declaration = declare(driver, *device_of(*properties, **config))
    assert not declared.errors()
    async with driver.connect(ID, declared.config) as link:
        yield link, declared.properties


LEVEL = ModelProperty("level", "FLOAT", "ReadOnly")
TARGET = ModelProperty("target", "INT")
SPEED = ModelProperty("speed", "FLOAT")
