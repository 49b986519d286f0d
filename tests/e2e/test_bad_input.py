"""What cannot work is refused by the API or shown on the DeviceStatus, and harms no other device."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.e2e.harness import Demo, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def device(name: str, demo: Demo, **changes: Any) -> str:
    """A device of the demo's model with one register, and one thing wrong."""
    host, _, port = demo.summary["modbus"].partition(":")
    visitor = {
        "register": "HoldingRegister",
        "offset": 0,
        "dataType": "int",
        "scale": 0.1,
        **changes.pop("visitor", {}),
    }
    spec: dict[str, Any] = {
        "deviceModelRef": {"name": "boiler"},
        "nodeName": "edge-1",
        "protocol": {
            "protocolName": "modbus",
            "configData": {"ip": host, "port": int(port), "slaveID": 1, **changes.pop("config", {})},
        },
        "properties": [
            {
                "name": "set-point", "collectCycle": 500, "reportToCloud": True,
                "visitors": {"protocolName": "modbus", "configData": visitor},
            }
        ],
        **changes,
    }  # fmt: skip
    return yaml.safe_dump(
        {"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name}, "spec": spec}
    )


def refused(demo: Demo, manifest: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as error:
        demo.kubectl("apply", "-f", "-", stdin=manifest)
    return str(error.value.stderr)


def reason(demo: Demo, name: str, *, state: str, says: str, within_s: float = 20) -> None:
    """Waits until the DeviceStatus shows a state, and everything it says contains a text."""

    def shown() -> bool:
        status = demo.status(name)
        return status.get("state") == state and says in json.dumps(status.get("extensions", {}))

    wait_for(shown, within_s=within_s, what=f"{name} is {state}: {says}")


def test_the_api_names_the_field(demo: Demo) -> None:
    model = {
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": {"name": "broken"},
        "spec": {"properties": [{"name": "a", "type": "INTEGER"}]},
    }  # fmt: skip
    assert 'spec.properties[0].type: Unsupported value: "INTEGER"' in refused(demo, yaml.safe_dump(model))
    twice = model | {"spec": {"properties": [{"name": "a", "type": "INT"}, {"name": "a", "type": "INT"}]}}
    assert "spec.properties[1]: Duplicate value" in refused(demo, yaml.safe_dump(twice))
    bounds = model | {"spec": {"properties": [{"name": "a", "type": "INT", "minimum": "5", "maximum": "1"}]}}
    assert "spec.properties[0]" in refused(demo, yaml.safe_dump(bounds))
    assert "spec.deviceModelRef.name" in refused(demo, device("broken", demo, deviceModelRef={"name": ""}))
    assert "unknown field" in refused(demo, device("broken", demo, protocoll={"protocolName": "modbus"}))


def test_a_missing_model_node_and_protocol_are_shown_on_the_status(demo: Demo) -> None:
    demo.kubectl("apply", "-f", "-", stdin=device("no-model", demo, deviceModelRef={"name": "boilr"}))
    demo.kubectl("apply", "-f", "-", stdin=device("no-node", demo, nodeName="edge-9"))
    demo.kubectl(
        "apply", "-f", "-", stdin=device("no-mapper", demo, protocol={"protocolName": "modbuss", "configData": {}})
    )
    reason(demo, "no-model", state="unknown", says="boilr")
    reason(demo, "no-node", state="unknown", says="edge-9", within_s=30)
    reason(demo, "no-mapper", state="unknown", says="modbuss", within_s=30)
    wait_for(
        lambda: "no mapper for protocol 'modbuss'" in demo.kubectl("get", "devicestatus", "no-mapper", "-o", "wide"),
        within_s=20, what="kubectl shows the reason",
    )  # fmt: skip
    # Repaired, it runs.
    demo.kubectl("apply", "-f", "-", stdin=device("no-model", demo))
    wait_for(lambda: demo.quality("no-model", "set-point") == "good", within_s=15, what="the repaired device reports")
    reason(demo, "no-model", state="online", says="")


@pytest.mark.parametrize(
    ("name", "visitor", "says"),
    (
        ("bad-register", {"register": "HoldingRegisters"}, "HoldingRegisters"),
        ("bad-offset", {"offset": 70000}, "70000"),
        ("bad-type", {"dataType": "quaternion"}, "quaternion"),
    ),
)
def test_a_visitor_that_cannot_work_is_named(demo: Demo, name: str, visitor: dict[str, Any], says: str) -> None:
    demo.kubectl("apply", "-f", "-", stdin=device(name, demo, visitor=visitor))
    reason(demo, name, state="unhealthy", says=says)
    wait_for(lambda: demo.quality(name, "set-point") == "bad", within_s=10, what="the value is bad")
    assert says in demo.log("mapper-modbus")


def test_an_unreachable_device_goes_offline_and_another_stays_well(demo: Demo) -> None:
    demo.kubectl("apply", "-f", "-", stdin=device("lonely", demo, config={"port": 1}))
    reason(demo, "lonely", state="offline", says="")
    wait_for(lambda: demo.status("boiler-1")["state"] == "online", within_s=10, what="the other device is well")
    before = int(demo.reported("boiler-1", "cycles"))
    wait_for(lambda: int(demo.reported("boiler-1", "cycles")) > before, within_s=10, what="and goes on reporting")


def test_a_deleted_device_is_gone_with_its_status(demo: Demo) -> None:
    demo.kubectl("apply", "-f", "-", stdin=device("short-lived", demo))
    wait_for(lambda: demo.quality("short-lived", "set-point") == "good", within_s=15, what="it reports")
    demo.kubectl("delete", "device", "short-lived")
    wait_for(
        lambda: demo.kubectl("get", "devicestatus", "short-lived", "--ignore-not-found") == "",
        within_s=10, what="its status is collected",
    )  # fmt: skip


def test_values_of_a_device_that_vanishes_turn_stale_then_bad_and_come_back(demo: Demo) -> None:
    qualities: list[str] = []
    demo.kill("simulator")

    def watch_until(wanted: str) -> bool:
        quality = demo.quality("boiler-1", "temperature")
        if not qualities or qualities[-1] != quality:
            qualities.append(quality)
        return quality == wanted

    wait_for(lambda: watch_until("bad"), within_s=20, what="the value turns bad")
    assert qualities[-2:] in (["stale", "bad"], ["bad"])
    assert demo.reported("boiler-1", "temperature") != ""
    reason(demo, "boiler-1", state="offline", says="")
    demo.restart("simulator")
    wait_for(lambda: watch_until("good"), within_s=15, what="the value is good again")
    reason(demo, "boiler-1", state="online", says="")
