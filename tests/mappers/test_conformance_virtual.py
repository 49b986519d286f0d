"""The virtual driver passes the conformance suite, and so does the driver of a small line protocol over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest

from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from dmi.values import format_value, parse_value
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk.testing import FaultyDriver
from mappers.sdk.testing.conformance import DriverConformance, Subject
from tests.mappers.kit_toy import PushingDriver, ToyDriver, toy_subject


class VirtualSubject(Subject):
    model = DeviceModel(
        "lab",
        "virtual",
        properties=(ModelProperty("level", "FLOAT", "ReadOnly"), ModelProperty("set-point", "INT")),
    )
    readable, values = "level", ("1.5", "2.5")
    writable, desired = "set-point", ("7", "8")
    pushed = "level"
    wrong_config: Mapping[str, Scalar] = {"latency": -1, "failRate": 2}
    wrong_visitor: Mapping[str, Scalar] = {"waveform": "wobble", "follows": "x", "file": "a.csv"}
    other_config: Mapping[str, Scalar] = {"timeout": 1000}
    reply_timeout_s = 0.5

    def __init__(self) -> None:
        self.inner = VirtualDriver()
        self.driver = self.inner
        self.device = Device(
            "lab",
            "virtual-1",
            model="virtual",
            protocol="virtual",
            protocol_config={"timeout": 500},
            properties=(
                DeviceProperty("level", visitor=Visitor(config={"waveform": "sine", "push": True, "pushEvery": 20})),
                DeviceProperty("set-point"),
            ),
        )
        self.neighbour = Device(
            "lab",
            "virtual-2",
            model="virtual",
            protocol="virtual",
            protocol_config={"failRate": 1, "timeout": 500},
            properties=(DeviceProperty("level"), DeviceProperty("set-point")),
        )

    async def start(self) -> None:
        self.inner.device(self.device.id).switch("offline", False)

    async def stop(self) -> None:
        self.inner.device(self.device.id).switch("offline", True)

    async def set_value(self, property_name: str, text: str) -> None:
        model = self.model.find(property_name)
        assert model is not None
        self.inner.device(self.device.id).held[property_name] = parse_value(text, model.type)

    async def get_value(self, property_name: str) -> str:
        model = self.model.find(property_name)
        assert model is not None
        return format_value(self.inner.device(self.device.id).held[property_name], model.type)


class TestVirtual(DriverConformance, lacks=("faults", "other_visitor")):
    @pytest.fixture
    def subject(self) -> Subject:
        return VirtualSubject()


class TestVirtualOverABadLine(DriverConformance, lacks=("neighbour", "other_visitor", "pushed")):
    """Faults put around the driver; nothing is pushed there, and everything read."""

    @pytest.fixture
    def subject(self) -> Subject:
        subject = VirtualSubject()
        subject.pushed = ""
        subject.wrong_visitor = {"waveform": "wobble", "file": "a.csv"}
        assert subject.neighbour is not None
        subject.device = msgspec.structs.replace(subject.device, properties=subject.neighbour.properties)
        subject.neighbour = None
        faulty = FaultyDriver(subject.inner, timeout_s=subject.reply_timeout_s)
        subject.driver, subject.faults = faulty, faulty.faults
        return subject


class TestToy(DriverConformance, lacks=("discovery", "pushed")):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with toy_subject(ToyDriver()) as subject:
            yield subject


class TestPushingToy(DriverConformance, lacks=("discovery",)):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with toy_subject(PushingDriver()) as subject:
            subject.pushed = "level"
            yield subject
