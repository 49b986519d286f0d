"""The report that is written by hand is the one that protobuf would write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi import ConfigError, Desired, Reported, Twin
from dmi._pb import api_pb2 as pb
from dmi.report import encode_report
from dmi.twins import LAST_MS, MAX_REASON_CHARS
from dmi.wire import twin_to_pb, twins_from_pb

texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("xé", min_size=100, max_size=20_000)
reasons = texts.map(lambda text: text[:MAX_REASON_CHARS])
times = st.sampled_from([0, 1, 999_999_999_999, 10**12, 1_767_323_045_123, 10**13 - 1, 10**13, LAST_MS])
types = st.sampled_from(["", "int", "float", "double", "boolean", "string", "bytes"])
twins = st.builds(
    Twin,
    texts,
    st.builds(Reported, texts, types, times, st.sampled_from(["good", "stale", "bad"]), reasons),
    st.builds(Desired, texts, types, times, st.sampled_from(["", "pending", "applied", "failed"]), reasons),
)


def as_protobuf(namespace: str, name: str, twins: list[Twin]) -> pb.ReportDeviceStatusRequest:
    return pb.ReportDeviceStatusRequest(
        deviceName=name,
        deviceNamespace=namespace,
        reportedDevice=pb.DeviceStatus(twins=[twin_to_pb(t) for t in twins]),
    )


@given(texts, texts, st.lists(twins, max_size=5))
def test_it_is_the_message_that_protobuf_builds(namespace: str, name: str, twins: list[Twin]) -> None:
    message = pb.ReportDeviceStatusRequest.FromString(encode_report(namespace, name, twins))
    assert message == as_protobuf(namespace, name, twins)
    if twins and all(t.property_name for t in twins):
        assert twins_from_pb(message.reportedDevice.twins) == [
            Twin(t.property_name, t.reported, t.desired) for t in twins
        ]


def test_both_sides_are_there_even_if_there_is_nothing_to_say() -> None:
    """Without them upstream's edge core crashes (DMI contract 0.1, rule 6)."""
    (twin,) = pb.ReportDeviceStatusRequest.FromString(encode_report("n", "d", [Twin("p")])).reportedDevice.twins
    assert twin.HasField("observedDesired")
    assert twin.HasField("reported")
    assert dict(twin.reported.metadata) == {"type": "", "timestamp": "", "quality": "good"}


def test_a_side_that_is_not_there_is_not_an_empty_one() -> None:
    """W12 of the device contract: upstream's edge core crashes on it."""
    value = pb.TwinProperty(value="5")
    assert twins_from_pb(
        [
            pb.Twin(propertyName="a", reported=value),
            pb.Twin(propertyName="b"),
            pb.Twin(propertyName="c", observedDesired=value),
            pb.Twin(propertyName="d", reported=pb.TwinProperty(), observedDesired=pb.TwinProperty()),
        ]
    ) == [
        Twin("a", Reported("5"), only="reported"),
        Twin("c", desired=Desired("5"), only="desired"),
        Twin("d"),
    ]
    for nothing in ([], [pb.Twin(propertyName="b")]):
        with pytest.raises(ConfigError, match="none of them has reported"):
            twins_from_pb(nothing)


def test_its_bytes() -> None:
    twin = Twin("t", Reported("5", "int", 1_767_323_045_123), Desired())
    desired = b"\x12\x08\x0a\x04type\x12\x00" + b"\x12\x0d\x0a\x09timestamp\x12\x00"
    reported = (
        b"\x0a\x015"
        b"\x12\x0b\x0a\x04type\x12\x03int"
        b"\x12\x0f\x0a\x07quality\x12\x04good"
        b"\x12\x1a\x0a\x09timestamp\x12\x0d1767323045123"
    )
    body = b"\x0a\x01t" + b"\x12\x19" + desired + b"\x1a\x3d" + reported
    assert encode_report("n", "d", [twin]) == b"\x0a\x01d" + b"\x12\x5f\x0a\x5d" + body + b"\x1a\x01n"
