"""A third party's driver inside edge core that calls `sys.exit()` wherever it can: the node's twins go on."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dmi import ConfigError
from edgecore.config import EdgeCoreConfig, MappersConfig
from edgecore.embedded import prepare
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

DRIVER = """
import asyncio, sys
from contextlib import asynccontextmanager
from msgspec import Struct
from mappers.sdk import Driver

exited = set()

class Config(Struct, frozen=True):
    exits_in: str = ""

class Visitor(Struct, frozen=True):
    pass

class AcmeLink:
    def __init__(self, config):
        self.exits_in = config.exits_in
        self.reads = 0
        self.tasks = []

    async def read_many(self, properties):
        self.reads += 1
        if self.reads == 2 and self.exits_in not in exited:
            exited.add(self.exits_in)
            self.leave()
        if self.reads == 3 and self.tasks:
            await self.tasks[0]
        return {p.name: self.reads for p in properties}

    def leave(self):
        async def exit_now():
            sys.exit("a task")
        match self.exits_in:
            case "call": sys.exit("a call")
            case "task": asyncio.create_task(exit_now())
            case "awaited task": self.tasks.append(asyncio.create_task(exit_now()))
            case "callback": asyncio.get_running_loop().call_soon(sys.exit, "a callback")

class AcmeDriver(Driver[Config, Visitor]):
    protocol = "acme"
    protocol_config = Config
    visitor_config = Visitor

    def check_config(self, config):
        if config.exits_in == "check":
            sys.exit("a check")
        return config

    @asynccontextmanager
    async def connect(self, device_id, config):
        if config.exits_in == "connect":
            sys.exit("a connect")
        yield AcmeLink(config)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """As `pip install` would: a package with an entry point."""

    def install(source: str) -> None:
        site = tmp_path / "site"
        info = site / "acme-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "acme_driver.py").write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[kubetwin.drivers]\nacme = acme_driver:AcmeDriver\n")
        monkeypatch.syspath_prepend(site)

    return install


def with_acme(config: EdgeCoreConfig) -> EdgeCoreConfig:
    mappers = MappersConfig(enable=True, protocols=("acme", "virtual"), common={"http_port": 0})
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, mappers=mappers))


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    return with_acme(config)


async def test_a_driver_that_exits_takes_nothing_with_it(
    install: Callable[[str], None],
    edge_process: Callable[[], EdgeProcess],
    cloud: FakeCloud,
    tmp_path: Path,
) -> None:
    install(DRIVER)
    process = edge_process()
    await process.start()
    await cloud.put(model_object("meter", "acme", {"level": "INT"}))
    places = ("", "call", "task", "awaited task", "callback", "check", "connect")
    for index, place in enumerate(places):
        device = device_object(f"meter-{index}", model="meter", protocol="acme", properties=["level"])
        device["spec"]["protocol"]["configData"] = {"exits_in": place}
        device["spec"]["properties"][0] |= {"visitors": {"configData": {}}, "collectCycle": 50}
        await cloud.put(device)
    for index in range(5):  # those that read something once: connected again where that is needed, and reading on
        await cloud.until(
            lambda i=index: (
                (t := cloud.twins.get((f"default/meter-{i}", "level"))) is not None  # type: ignore[misc]
                and t.get("actual", {}).get("value", "") not in ("", "1")
            ),
            f"meter-{index} ({places[index]}) is read on",
        )
    state = await cloud.until_state("default/meter-5", "unhealthy")
    assert "SystemExit('a check')" in state["reason"]
    state = await cloud.until_state("default/meter-6", "unhealthy")
    assert "SystemExit" in state["reason"]
    async with FakeMapper(tmp_path).running() as mapper:  # and others are served
        await cloud.put(model_object())
        await cloud.put(device_object())
        await mapper.report("default/boiler-1", temperature="3")
        await cloud.until_value("default/boiler-1", "temperature", "3")
    assert await process.end(signal.SIGTERM) == 0, "\n".join(process.log)
    log = "\n".join(process.log)
    assert "sys.exit('a task') in the event loop does not end this process" in log
    assert "sys.exit('a callback') in the event loop" in log
    assert "acme_driver.py" in log  # whose it was


@pytest.mark.parametrize(
    ("source", "says"),
    (
        ("import sys; sys.exit('no license')", "driver 'acme' cannot be loaded: SystemExit('no license')"),
        ("import no_such_library", "driver 'acme' cannot be loaded: No module named 'no_such_library'"),
        (
            DRIVER + "    def __init__(self): raise OSError('no /dev/acme')",
            "driver 'acme' cannot be made: OSError('no /dev/acme')",
        ),
        (
            DRIVER.replace(
                "class Visitor(Struct, frozen=True):\n    pass", "class Visitor(Struct):\n    deadband: int"
            ),
            "driver 'acme' cannot be used: AcmeDriver.visitor_config.deadband: is a visitor key",
        ),
    ),
)
def test_a_driver_that_cannot_be_loaded_keeps_edge_core_from_starting(
    install: Callable[[str], None], config: EdgeCoreConfig, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    install(source)
    monkeypatch.delitem(sys.modules, "acme_driver", raising=False)
    with pytest.raises(ConfigError) as caught:
        prepare(config, where="f.yaml: modules.mappers")
    assert str(caught.value).startswith(f"f.yaml: modules.mappers.protocols: {says}")
