"""The main job: read a register with kubectl, write it with kubectl."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Demo, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_kubectl_shows_live_values_in_one_line(demo: Demo) -> None:
    table = demo.kubectl("get", "devicestatuses")
    header, row = table.splitlines()
    assert header.split() == ["NAME", "STATE", "TWINS", "LAST-ONLINE", "AGE"]
    assert row.startswith("boiler-1")
    for part in ("temperature=", "Celsius", "pressure=", "bar", "door-open=false", "pump="):
        assert part in row
    assert demo.kubectl("get", "devst").splitlines()[0] == header
    assert demo.kubectl("get", "devices").split()[:8] == [
        "NAME", "MODEL", "NODE", "PROTOCOL", "AGE", "boiler-1", "boiler", "edge-1",
    ]  # fmt: skip
    for name in ("device.devices.kubeedge.io/boiler-1", "devicemodel.devices.kubeedge.io/boiler"):
        assert name in demo.kubectl("get", "kubetwin", "-o", "name")


def test_values_are_live_and_are_the_devices(demo: Demo) -> None:
    before = int(demo.reported("boiler-1", "cycles"))
    wait_for(lambda: int(demo.reported("boiler-1", "cycles")) > before, within_s=10, what="the counter goes on")
    with demo.modbus() as modbus:
        bits = modbus.read_input_registers(0, count=1, device_id=1).registers
    assert abs(bits[0] / 10 - float(demo.reported("boiler-1", "temperature"))) < 3
    twin = demo.twin("boiler-1", "temperature")["reported"]
    assert twin["metadata"]["type"] == "float"
    assert abs(int(twin["metadata"]["timestamp"]) / 1000 - time.time()) < 30


def test_a_patch_of_desired_changes_the_register_within_two_seconds(demo: Demo) -> None:
    with demo.modbus() as modbus:
        for value in ("42", "43.5", "60"):
            demo.set_desired("boiler-1", "set-point", value)
            wait_for(
                lambda value=value: modbus.read_holding_registers(0, count=1, device_id=1).registers[0]  # type: ignore[misc]
                == float(value) * 10,
                within_s=2, what=f"the register is {value} times 10",
            )  # fmt: skip
            twin = wait_for(
                lambda value=value: (  # type: ignore[misc]
                    t if (t := demo.twin("boiler-1", "set-point"))["reported"]["value"] == value
                    and t["observedDesired"]["metadata"].get("write") == "applied" else None
                ),
                within_s=5, what="the twin says so",
            )  # fmt: skip
            assert twin["observedDesired"]["value"] == value


def test_a_coil_and_a_text_are_written_too(demo: Demo) -> None:
    properties = [p["name"] for p in demo.get("device", "boiler-1")["spec"]["properties"]]
    patch = ",".join(
        f'{{"op":"add","path":"/spec/properties/{properties.index(name)}/desired","value":{{"value":"{value}"}}}}'
        for name, value in (("pump", "false"), ("label", "Kessel 7"))
    )
    demo.kubectl("patch", "device", "boiler-1", "--type", "json", "-p", f"[{patch}]")
    with demo.modbus() as modbus:
        wait_for(lambda: not modbus.read_coils(0, count=1, device_id=1).bits[0], within_s=5, what="the pump stands")
    wait_for(lambda: demo.reported("boiler-1", "label") == "Kessel 7", within_s=5, what="the label is read back")
    wait_for(lambda: demo.reported("boiler-1", "pump") == "false", within_s=5, what="the pump is read back")


def test_a_value_out_of_range_is_shown_and_never_written(demo: Demo) -> None:
    with demo.modbus() as modbus:
        before = modbus.read_holding_registers(0, count=1, device_id=1).registers
        demo.set_desired("boiler-1", "set-point", "200")
        wait_for(
            lambda: demo.twin("boiler-1", "set-point")["observedDesired"]["metadata"].get("write") == "failed",
            within_s=5, what="the write is refused",
        )  # fmt: skip
        observed = demo.twin("boiler-1", "set-point")["observedDesired"]
        assert "200 is above the maximum 95" in observed["metadata"]["reason"]
        problems = wait_for(
            lambda: demo.status("boiler-1")["extensions"].get("problems"), within_s=5, what="the problem is shown"
        )
        assert "spec.properties[4].desired.value: 200 is above the maximum 95" in problems[0]["message"]
        assert modbus.read_holding_registers(0, count=1, device_id=1).registers == before
    demo.set_desired("boiler-1", "set-point", "60")
    wait_for(lambda: not demo.status("boiler-1")["extensions"].get("problems"), within_s=5, what="it is gone again")


def test_a_desired_value_on_a_read_only_property_is_shown(demo: Demo) -> None:
    patch = '[{"op":"add","path":"/spec/properties/0/desired","value":{"value":"21"}}]'
    demo.kubectl("patch", "device", "boiler-1", "--type", "json", "-p", patch)
    problems = wait_for(
        lambda: demo.status("boiler-1")["extensions"].get("problems"), within_s=5, what="the problem is shown"
    )
    assert problems[0]["reason"] == "ReadOnlyProperty"
    demo.kubectl(
        "patch", "device", "boiler-1", "--type", "json", "-p", '[{"op":"remove","path":"/spec/properties/0/desired"}]'
    )


def test_the_plugin_reads_and_writes(demo: Demo, tmp_path: Path) -> None:
    # kubectl finds the plugin on PATH, as it does for a person.
    binaries = str(Path(sys.executable).parent)
    command = [demo.summary["kubectl"], "twin", "--kubeconfig", demo.summary["kubeconfig"]]

    def twin(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], check=False, capture_output=True, text=True, timeout=30,
            env={"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(tmp_path)},
        )  # fmt: skip

    assert twin("set", "boiler-1", "set-point=55").stdout == "device.devices.kubeedge.io/boiler-1 patched\n"

    def applied() -> str | None:
        rows = twin("get", "boiler-1").stdout.splitlines()
        return next((r for r in rows if " set-point " in r and " 55 " in r and " yes " in r), None)

    row = wait_for(
        applied,
        within_s=10, what="the plugin shows the write",
    )  # fmt: skip
    assert row.split()[1:6] == ["set-point", "55", "Celsius", "55", "yes"]
    refused = twin("set", "boiler-1", "presure=5")
    assert refused.returncode == 2
    assert "has no property 'presure'; it has temperature, pressure" in refused.stderr


def test_the_demo_prints_what_to_try(demo: Demo) -> None:
    screen = (demo.directory / "screen.log").read_text()
    assert f"--kubeconfig {demo.directory}/kubeconfig get devicestatuses" in screen
    assert "default/boiler-1 temperature = " in screen
