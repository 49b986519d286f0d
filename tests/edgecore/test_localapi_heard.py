"""The bookkeeping behind the facts, without I/O: what mappers last said, and since when something is unconfirmed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi import ConfigError, DeviceId
from edgecore.configfile import load_config
from edgecore.devicetwin.heard import MAX_DEVICES, MAX_OF_DEVICE, HeardReports
from edgecore.devicetwin.outbox import InFlight, Key, Outbox

PUMP, FAN = DeviceId("default/pump"), DeviceId("default/fan")


def test_refusals_are_counted_newest_first() -> None:
    heard = HeardReports()
    assert heard.note_refused(PUMP, "speed", "no property", 1)
    assert heard.note_refused(PUMP, "level", "no property", 2)
    assert not heard.note_refused(PUMP, "speed", "too large", 3)
    assert [(r.what, r.reason, r.count, r.at_ms) for r in heard.refused(PUMP)] == [
        ("speed", "too large", 2, 3),
        ("level", "no property", 1, 2),
    ]
    assert heard.refused(FAN) == ()
    heard.forget(PUMP)
    assert heard.refused(PUMP) == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=200)), max_size=80))
def test_of_a_device_a_bounded_number_is_kept(notes: list[tuple[int, str]]) -> None:
    heard = HeardReports()
    for number, (device, what) in enumerate(notes):
        heard.note_refused(DeviceId(f"d/{device}"), what, what * 10, number)
    for device in range(4):
        kept = heard.refused(DeviceId(f"d/{device}"))
        mine = [what[:64] for which, what in notes if which == device]
        assert len(kept) <= MAX_OF_DEVICE
        assert [r.what for r in kept] == list(dict.fromkeys(reversed(mine)))[:MAX_OF_DEVICE]
        assert all(len(r.reason) <= 512 for r in kept)


def test_of_many_devices_those_refused_longest_ago_are_forgotten() -> None:
    heard = HeardReports()
    for number in range(MAX_DEVICES + 1):
        heard.note_refused(DeviceId(f"d/{number}"), "speed", "no", number)
        heard.note_refused(DeviceId("d/0"), "speed", "no", number)
    assert heard.refused(DeviceId("d/0"))[0].count == MAX_DEVICES + 2
    assert heard.refused(DeviceId("d/1")) == ()
    assert heard.refused(DeviceId(f"d/{MAX_DEVICES}"))


def test_times_are_of_the_last_report() -> None:
    heard = HeardReports()
    assert (heard.last_report_ms(PUMP), heard.last_state_ms(PUMP)) == (0, 0)
    heard.note_report(PUMP, 5)
    heard.note_state(PUMP, 7)
    heard.note_report(PUMP, 9)
    assert (heard.last_report_ms(PUMP), heard.last_state_ms(PUMP)) == (9, 7)
    heard.forget(PUMP)
    assert heard.last_report_ms(PUMP) == 0


def send(outbox: Outbox, message: str, at: float) -> None:
    (key,) = outbox.take(1)
    outbox.sent(InFlight(key, message, {}, at))


def test_unconfirmed_since_the_first_try() -> None:
    outbox = Outbox()
    assert outbox.unconfirmed_since(PUMP) is None
    outbox.mark(Key(PUMP, "twins"))
    assert outbox.unconfirmed_since(PUMP) is None
    send(outbox, "m1", 10.0)
    assert outbox.unconfirmed_since(PUMP) == 10.0
    assert outbox.expire(25.0) == 1
    send(outbox, "m2", 25.0)
    assert outbox.unconfirmed_since(PUMP) == 10.0
    outbox.restart([Key(PUMP, "twins")])  # another connection
    send(outbox, "m3", 40.0)
    assert outbox.unconfirmed_since(PUMP) == 10.0
    assert outbox.confirmed("m1", 1.0) is None
    assert outbox.unconfirmed_since(PUMP) == 10.0
    assert outbox.confirmed("m3", 1.0)
    assert outbox.unconfirmed_since(PUMP) is None


def test_what_need_not_be_sent_after_all_is_not_waited_for() -> None:
    outbox = Outbox()
    outbox.mark(Key(PUMP, "state"))
    send(outbox, "m1", 10.0)
    outbox.restart([Key(PUMP, "state")])
    (key,) = outbox.take(1)
    outbox.nothing_to_send(key)
    assert outbox.unconfirmed_since(PUMP) is None
    outbox.mark(Key(PUMP, "twins"))
    send(outbox, "m2", 11.0)
    outbox.forget(PUMP)
    assert outbox.unconfirmed_since(PUMP) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    (
        (
            "{deviceTwin: {history: {enable: true, dataSource: DIR/edgecore.db}}}",
            "modules.deviceTwin.history.dataSource",
        ),
        ("{deviceTwin: {dmiSockPath: DIR}, localApi: {socket: DIR/dmi.sock}}", "modules.localApi.socket"),
        ("{deviceTwin: {history: {maxBytes: 65536}}}", "modules.deviceTwin.history.maxBytes"),
    ),
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: str, named: str) -> None:
    file = tmp_path / "edgecore.yaml"
    head = "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n"
    text = f"{head}database: {{dataSource: DIR/edgecore.db}}\nmodules: {settings}\n"
    file.write_text(text.replace("DIR", str(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert named in str(caught.value)


def test_what_nobody_asked_for_is_not_in_memory() -> None:
    program = (
        "import sys, edgecore.app;"
        "print([m for m in ('h11', 'dmi.web', 'edgecore.history', 'edgecore.localapi.api', 'aiomqtt')"
        " if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
