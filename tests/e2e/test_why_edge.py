"""`kubetwin why` names what is broken between edge core and the device."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from dmi import DeviceId, PeerRefused, Reported, Twin
from dmi.client import EdgeCoreClient
from tests.e2e.harness import Demo
from tests.e2e.why_harness import BOTH, CLOUD, apply, device, start, why_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def stubborn_device(demo: Demo) -> Iterator[int]:
    """Port of a boiler that can be read and not be written to."""
    fault = ",".join(f"refuse-function={code}" for code in (5, 6, 15, 16))
    process, line = start(demo.directory, "-m", "kubetwin", "simulate", "modbus", "--port", "0", "--fault", fault)
    yield int(line.rpartition(":")[2])
    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_mapper_is_killed(demo: Demo) -> None:
    demo.kill("mapper-modbus")
    told = why_until(demo, 21)
    assert "mapper modbus-mapper is gone" in told.summary
    assert told.verdict["steps"][10]["age_s"] < 60
    demo.restart("mapper-modbus")
    why_until(demo, 0)


def test_the_mapper_hangs(demo: Demo) -> None:
    process = psutil.Process(demo.pid("mapper-modbus"))
    process.send_signal(signal.SIGSTOP)
    try:
        assert "mapper modbus-mapper hangs" in why_until(demo, 21, seen_from=CLOUD, within_s=60).summary
    finally:
        process.send_signal(signal.SIGCONT)
    why_until(demo, 0, within_s=60)


def test_no_mapper_for_the_protocol_then_one_that_refuses(demo: Demo) -> None:
    protocol = {"protocolName": "modbuss", "configData": {}}
    model = demo.kubectl("get", "devicemodel", "boiler", "-o", "yaml").replace("protocol: modbus", "protocol: modbuss")
    demo.kubectl("apply", "-f", "-", stdin=model.replace("name: boiler\n", "name: other\n", 1))

    def apply_other(name: str) -> None:
        manifest = device(name, demo, protocol=protocol, deviceModelRef={"name": "other"})
        apply(demo, manifest.replace("protocolName: modbus\n", "protocolName: modbuss\n"))

    apply_other("nobodys")
    told = why_until(demo, 20, "default/nobodys")
    assert "modbus/modbus-mapper" in told.summary
    process, _ = start(demo.directory, "-m", "tests.e2e.refusing_mapper", str(demo.directory), "modbuss")
    try:
        apply_other("refused")  # what it got with its registration, a mapper cannot refuse
        told = why_until(demo, 22, "default/refused")
        assert "there is no such line on this machine" in told.summary
    finally:
        _end(process)


def test_the_device_is_away(demo: Demo) -> None:
    demo.kill("simulator")
    told = why_until(demo, 23)
    assert "offline" in told.summary
    assert told.states[12] == "ok"
    demo.restart("simulator")
    why_until(demo, 0)


def test_one_register_is_illegal(demo: Demo) -> None:
    apply(demo, device("half-bad", demo, visitor={"offset": 9000}))
    told = why_until(demo, 24, "default/half-bad")
    assert "temperature: bad" in told.summary
    details = {d["property_name"]: d["state"] for d in told.verdict["steps"][13]["properties"]}
    assert details == {"temperature": "broken", "set-point": "ok"}


def test_a_report_is_refused(demo: Demo) -> None:
    async def report() -> None:
        client = EdgeCoreClient(demo.directory / "dmi.sock")
        try:
            with pytest.raises(PeerRefused):
                await client.report_twins(DeviceId("default/boiler-1"), [Twin("label", Reported("x" * 1_000_000))])
        finally:
            await client.close()

    told = why_until(demo, 25, again=lambda: asyncio.run(report()))
    assert "label: edge core refuses" in told.summary
    why_until(demo, 0, within_s=60)


def test_a_write_is_refused(demo: Demo, stubborn_device: int) -> None:
    apply(demo, device("stubborn", demo, port=stubborn_device, desired={"set-point": "50"}))
    told = why_until(demo, 28, "default/stubborn")
    assert "set-point: '50' could not be written" in told.summary
    demo.kubectl("delete", "device", "stubborn")


@pytest.mark.parametrize("seen_from", (BOTH, CLOUD))
def test_nothing_can_be_written_to_disk(demo: Demo, seen_from: str) -> None:
    """A file size limit, for a full disk: what edge core sees is the same."""
    process = psutil.Process(demo.pid("edgecore"))
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    try:
        told = why_until(demo, 18, seen_from=seen_from)
        assert "nothing is written to disk" in told.summary
        assert told.states[14] == "ok", "the values go on"
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)
    why_until(demo, 0)
