"""`kubetwin mapper discover`, `drivers` and `explain`: what drivers can do, said to people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from msgspec import Meta, Struct

from kubetwin.cli import main
from kubetwin.mapper_drivers import abilities
from kubetwin.reference import Key, driver_text, keys_of
from mappers.sdk import DeviceId, DeviceUnreachable, Driver, Found, FoundProperty, Property, Push, ReadResult, Value


class BusConfig(Struct, frozen=True):
    port: str
    """The serial port,
    such as `/dev/ttyS0`."""
    speed: Annotated[int, Meta(ge=300, le=115200)] = 9600
    mode: Literal["", "fast", "slow"] = msgspec.field(default="", name="busMode")
    """Left out: fast."""
    ratio: Annotated[float, Meta(gt=0)] | None = None
    quiet: bool = False


class BusVisitor(BusConfig, frozen=True):
    index: int = 0
    """Where it is."""


class Silent:
    async def subscribe(self, properties: Sequence[Property[BusVisitor]], push: Push, /) -> Collection[str]:
        raise NotImplementedError


class Answering:
    async def read_many(self, properties: Sequence[Property[BusVisitor]], /) -> Mapping[str, ReadResult]:
        raise NotImplementedError

    async def write(self, property_: Property[BusVisitor], value: Value, /) -> None:
        raise NotImplementedError


class BusDriver(Driver[BusConfig, BusVisitor]):
    """A bus that has two meters and a stranger on it."""

    protocol = "bus"
    protocol_config = BusConfig
    visitor_config = BusVisitor
    fails: BaseException | None = None

    def connect(self, device_id: DeviceId, config: BusConfig) -> AbstractAsyncContextManager[Answering | Silent]:
        raise NotImplementedError

    async def discover(self, config: BusConfig) -> AsyncIterator[Found]:
        meter = (
            FoundProperty("volts", "FLOAT", {"port": config.port, "index": 0}, description="raw 2301"),
            FoundProperty("limit", "INT", {"port": config.port, "index": 1}, "ReadWrite"),
        )
        yield Found("Meter №1", {"port": config.port}, meter, "Acme\nEM-100")
        yield Found("meter-1", {"port": config.port, "speed": 300}, meter)
        if self.fails is not None:
            raise self.fails
        yield Found("ON", {"port": config.port}, (FoundProperty("on", "BOOLEAN", {"port": "NO"}),))


@pytest.fixture(autouse=True)
def with_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is installed."""
    entries = (
        EntryPoint("bus", f"{__name__}:BusDriver", "kubetwin.drivers"),
        EntryPoint("gone", "no_such_module:Driver", "kubetwin.drivers"),
    )

    def entry_points(*, group: str) -> Sequence[EntryPoint]:
        return entries if group == "kubetwin.drivers" else ()

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr("kubetwin.mapper_drivers.entry_points", entry_points)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["mapper", *arguments])


def test_what_is_found_becomes_manifests_that_pass_the_check(tmp_path: Path) -> None:
    file = tmp_path / "found.yaml"
    result = run("discover", "bus", "port=/dev/ttyS0", "-o", str(file), "--node", "edge-7", "--namespace", "plant")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == "found Meter №1, 2 properties: Acme EM-100"
    checked = run("check", str(file))
    assert checked.exit_code == 0, checked.output
    # Meters that have the same properties are of one model, and names are Kubernetes'.
    assert checked.output.splitlines()[-1] == "3 devices, 2 models: 0 errors, 0 warnings"
    objects = list(yaml.safe_load_all(file.read_text()))
    named = [(o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]) for o in objects]
    assert named == [
        ("DeviceModel", "plant", "meter-1"),
        ("Device", "plant", "meter-1"),
        ("Device", "plant", "meter-1-2"),
        ("DeviceModel", "plant", "on"),
        ("Device", "plant", "on"),
    ]
    first, second, third = (o["spec"] for o in objects if o["kind"] == "Device")
    assert first["nodeName"] == "edge-7"
    assert first["properties"][0]["visitors"]["configData"] == {"port": "/dev/ttyS0", "index": 0}
    assert second["protocol"]["configData"] == {"port": "/dev/ttyS0", "speed": 300}
    assert second["deviceModelRef"]["name"] == "meter-1"
    assert third["properties"][0]["visitors"]["configData"] == {
        "port": "NO"
    }  # quoted, so that no YAML reader sees a flag
    assert "# Acme EM-100\n" in file.read_text()


def test_ctrl_c_ends_the_search_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusDriver, "fails", KeyboardInterrupt())
    result = run("discover", "bus", "port=x")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert [o["kind"] for o in yaml.safe_load_all(result.stdout)] == ["DeviceModel", "Device", "Device"]


def test_a_search_that_fails_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusDriver, "fails", DeviceUnreachable(DeviceId("discover/bus"), "the port is gone"))
    result = run("discover", "bus", "port=x")
    assert result.exit_code == 1
    assert "Error: the port is gone" in result.stderr
    assert [o["kind"] for o in yaml.safe_load_all(result.stdout)] == ["DeviceModel", "Device", "Device"]


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    result = run("discover", "bus", "port=x", "-o", str(file))
    assert result.exit_code == 1
    assert "File exists" in result.output
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "said"),
    (
        ((), "port: is missing"),
        (("port",), "port: write key=value"),
        (("=x",), "write key=value"),
        (("port=x", "sped=300"), "sped: is no key of bus; see kubetwin mapper explain bus"),
        (("port=x", "speed=1"), "speed: '1' is not accepted: expected a whole number, 300 to 115200"),
    ),
)
def test_wrong_settings_are_refused_and_leave_no_file(tmp_path: Path, settings: tuple[str, ...], said: str) -> None:
    file = tmp_path / "found.yaml"
    result = run("discover", "bus", *settings, "-o", str(file))
    assert result.exit_code == 1
    assert said in result.output
    assert not file.exists()


def test_drivers_are_listed_with_what_they_can_and_why_they_cannot() -> None:
    result = run("drivers")
    assert result.exit_code == 0
    header, bus, gone = result.output.splitlines()
    assert header.split() == ["PROTOCOL", "DISTRIBUTION", "CAN"]
    assert bus.split(maxsplit=1)[0] == "bus"
    assert "discover" in bus
    assert "cannot be loaded: No module named 'no_such_module'" in gone


def test_abilities_are_read_from_the_type_of_the_link() -> None:
    assert abilities(BusDriver()) == ("read", "subscribe", "write", "discover")


def test_keys_are_told_as_they_are_written() -> None:
    assert keys_of(BusVisitor) == [
        Key("port", "text", "required", "The serial port, such as `/dev/ttyS0`."),
        Key("speed", "whole number, 300 to 115200", "9600", ""),
        Key("busMode", "one of `fast`, `slow`", '""', "Left out: fast."),
        Key("ratio", "number, over 0", "not set", ""),
        Key("quiet", "true or false", "false", ""),
        Key("index", "whole number", "0", "Where it is."),
    ]


def test_explain_tells_the_drivers_keys_and_the_runtimes() -> None:
    text = run("explain", "bus").output
    assert text == driver_text(BusDriver())
    assert "A bus that has two meters" in text
    assert "speed: whole number, 300 to 115200; default 9600" in text
    assert "deadband: number, 0 or more; default 0" in text
    refused = run("explain", "buss")
    assert refused.exit_code == 1
    assert "no driver 'buss' is installed; there is bus, gone" in refused.output
