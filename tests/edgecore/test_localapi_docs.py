"""The page on edge core's API: every curl line does what the page shows, and every metric is on it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from cloudedge.message import now_ms
from dmi import DeviceId, DmiError, Reported, Twin
from edgecore.config import EdgeCoreConfig, HistoryConfig
from tests.docs.page import DOCS, blocks, commands, is_like
from tests.edgecore.api_client import get_text
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, desired_twin
from tests.mappers.sink_world import program

PAGE = "edge-api.md"
BOILER = DeviceId("default/boiler-1")


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    """With all that counts something on, but for EventBus, which needs a broker."""
    modules = config.modules
    twin = msgspec.structs.replace(modules.device_twin, history=HistoryConfig(enable=True), dmi_allowed_users=(0,))
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(modules, device_twin=twin))


async def type_in(command: str, socket: Path) -> str:
    line = command.replace("curl ", "curl -sS ", 1).replace("/etc/kubeedge/edgecore.sock", str(socket))
    process = await asyncio.create_subprocess_shell(  # the commands of our own page
        line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    return output.decode()


@pytest.mark.programs
async def test_every_command_shows_what_the_page_says(
    edge: Edge, boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path
) -> None:
    program("curl")
    await boiler.client.report_state(BOILER, "online")
    await boiler.report(BOILER, at_ms=now_ms() - 2000, temperature="21.0")
    await boiler.report(BOILER, temperature="21.5")
    await boiler.client.report_twins(BOILER, [desired_twin("setpoint", "30")])
    with pytest.raises(DmiError):
        await boiler.client.report_twins(BOILER, [Twin("pressure", Reported("1"))])
    await cloud.until_value(BOILER, "setpoint", "30")
    await cloud.until_state(BOILER, "online")
    socket, ran = tmp_path / "edgecore.sock", 0
    async with asyncio.timeout(15):
        while "unsent" in (await get_text(socket, f"/v1/devices/{BOILER}/path"))[1]:  # noqa: ASYNC110 - as a client
            await asyncio.sleep(0.02)
    for block in blocks(PAGE):
        if block.language != "console":
            continue
        for command, shown in commands(block):
            output = await type_in(command, socket)
            assert is_like(shown, output), f"{command}\n{output}"
            ran += 1
    assert ran >= 10


async def test_every_metric_is_on_the_page(edge: Edge, boiler: FakeMapper, tmp_path: Path) -> None:
    _, text = await get_text(tmp_path / "edgecore.sock", "/metrics")
    served = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    page = (DOCS / PAGE).read_text()
    named = {f"kubetwin_edgecore{rest}" for rest in re.findall(r"(?:kubetwin_edgecore|…)(_[a-z_]+)", page)}
    named |= set(re.findall(r"process_[a-z_]+", page))
    assert sorted(served - named) == [], "not on the page"
    assert sorted(name for name in named - served if "_mqtt_" not in name) == [], "not served"
