"""What mappers and local apps may send that makes no sense, or little."""

from __future__ import annotations

from typing import Any, Final

from dmi._pb import api_pb2 as pb
from dmi.rpc import MAX_MESSAGE_BYTES

TARGET: Final = "default/target"
TWIN: Final = f"$hw/events/device/{TARGET}/twin"

# Calls of mappers


def report_of(*twins: pb.Twin, namespace: str = "default", name: str = "target") -> bytes:
    return pb.ReportDeviceStatusRequest(
        deviceNamespace=namespace, deviceName=name, reportedDevice=pb.DeviceStatus(twins=twins)
    ).SerializeToString()


def reported(name: str = "temperature", value: str = "1", **metadata: str) -> pb.Twin:
    return pb.Twin(propertyName=name, reported=pb.TwinProperty(value=value, metadata=metadata))


def state_of(state: str, namespace: str = "default", name: str = "target") -> bytes:
    return pb.ReportDeviceStatesRequest(deviceNamespace=namespace, deviceName=name, state=state).SerializeToString()


def mapper_of(**fields: Any) -> bytes:
    info = {"name": "other", "protocol": "nonsense", "address": b"/nowhere.sock"} | fields
    return pb.MapperRegisterRequest(withData=True, mapper=pb.MapperInfo(**info)).SerializeToString()


STATUS, STATES, REGISTER = "ReportDeviceStatus", "ReportDeviceStates", "MapperRegister"
LONG: Final = "x" * 1_000_000
NOT_UTF8 = report_of(reported(value="abcd")).replace(b"abcd", b"a\xff\xfed")
CALLS: Final[tuple[tuple[str, bytes, str, str], ...]] = (
    (STATUS, b"\xff\xff\xff rubbish", "UNKNOWN", "DecodeError"),
    (STATUS, b"\x08\x01\x10\x02", "NOT_FOUND", "deviceNamespace"),  # texts as numbers
    (STATUS, NOT_UTF8, "UNKNOWN", "DecodeError"),
    (STATUS, b"", "NOT_FOUND", "deviceNamespace '' and deviceName '' do not name a device"),
    (STATUS, report_of(reported(), namespace=""), "NOT_FOUND", "deviceNamespace"),
    (STATUS, report_of(reported(), name="a/b"), "NOT_FOUND", "'a/b'"),
    (STATUS, report_of(reported(), name="nobody"), "NOT_FOUND", "default/nobody is not on node edge-1"),
    (STATUS, report_of(reported(), name=LONG), "NOT_FOUND", "xxx"),
    (STATUS, report_of(), "INVALID_ARGUMENT", "reportedDevice.twins"),
    (STATUS, report_of(pb.Twin(propertyName="temperature")), "INVALID_ARGUMENT", "reportedDevice.twins"),
    (STATUS, report_of(reported(), reported("")), "INVALID_ARGUMENT", "reportedDevice.twins[1].propertyName"),
    (STATUS, report_of(reported("wetness")), "NOT_FOUND", "default/target has no property 'wetness'"),
    (STATUS, report_of(reported(LONG)), "NOT_FOUND", "default/target has no property 'xxx"),
    (STATUS, report_of(*(reported(f"p{n}") for n in range(10_000))), "NOT_FOUND", "no property"),
    (STATUS, report_of(reported(value=LONG)), "INVALID_ARGUMENT", "'temperature' of device default/target"),
    (STATUS, report_of(reported(value="x" * (MAX_MESSAGE_BYTES + 1))), "RESOURCE_EXHAUSTED", ""),
    (STATES, b"\xff\xff rubbish", "UNKNOWN", "DecodeError"),
    (STATES, state_of("dead"), "INVALID_ARGUMENT", "'dead' is not one of"),
    (STATES, state_of(LONG), "INVALID_ARGUMENT", "is not one of"),
    (STATES, state_of("online", name="nobody"), "NOT_FOUND", "default/nobody"),
    (STATES, state_of("online", namespace="a/b"), "NOT_FOUND", "'a/b'"),
    (REGISTER, b"\xff\xff rubbish", "UNKNOWN", "DecodeError"),
    (REGISTER, b"", "INVALID_ARGUMENT", "mapper"),
    (REGISTER, mapper_of(protocol=""), "INVALID_ARGUMENT", "mapper"),
    (REGISTER, mapper_of(name=LONG), "INVALID_ARGUMENT", "mapper.name"),
    (REGISTER, mapper_of(address=b""), "INVALID_ARGUMENT", "mapper.address"),
    (REGISTER, mapper_of(address=b"\xff\xfe"), "INVALID_ARGUMENT", "mapper.address"),
    (REGISTER, mapper_of(address=b"/" + b"x" * 5000), "INVALID_ARGUMENT", "mapper.address"),
    ("NoSuchCall", b"", "UNIMPLEMENTED", ""),
)  # fmt: skip
ODD: Final = (
    reported(value="", type="purple", quality="excellent", timestamp="yesterday"),
    reported(timestamp="9" * 18),
    reported(timestamp="9" * 400),
    reported(timestamp="-5"),
    reported(type=LONG),
    reported(reason=LONG, quality="bad"),
    reported(**{f"key-{n}": "x" * 100 for n in range(5000)}),
    pb.Twin(propertyName="temperature", observedDesired=pb.TwinProperty(value="5", metadata={"write": LONG})),
)
"""What can be made sense of is taken all the same."""


# Messages of local apps

DEEP: Final = b"[" * 100_000
CORPUS: Final[tuple[bytes, ...]] = (
    b"", b"\0", b"null", b"[]", b"7", b'"x"', b"{", b"NaN", b'{"twin":NaN}', DEEP, b'{"twin":' + DEEP,
    b'{"twin":' * 5000 + b"1" + b"}" * 5000, b'{"event_id":"\xff"}', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0",
    b'{"event_id":5,"twin":{}}', b'{"event_id":"e","twin":[]}', b'{"event_id":"e","twin":{"temperature":7}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":7}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":7}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"%s"}}}}' % (b"x" * 70_000),
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"\\ud800"}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"1"},"metadata":{"type":"purple"}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"1"},"metadata":{"type":5}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"warm"},"metadata":{"type":"int"}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual_version":{"edge":1e999}}}}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"1"},"actual_version":{"edge":99999999999999999999}}}}',
    b'{"event_id":"e","twin":{"wetness":{"actual":{"value":"1"}}}}',
    b'{"event_id":"e","twin":{"%s":{"actual":{"value":"1"}}}}' % (b"x" * 100_000),
    b'{"event_id":"e","twin":{"":{"actual":{"value":"1"}}}}',
    b'{"event_id":"e","twin":{%s}}' % b",".join(b'"p%d":null' % n for n in range(5000)),
    b'{"event_id":"%s"}' % (b"x" * 10_000), b'{"event_id":"e","state":"dead"}', b'{"event_id":"e","state":[]}',
    b'{"event_id":"e","timestamp":-1e400,"twin":{}}', b'{"event_id":"e","%s":1}' % (b"k" * 100_000),
    b'{"twin":{"temperature":null},"twin":{"temperature":7},"TWIN":5}',
    b'{"event_id":"e","twin":{"temperature":{"actual":{"value":"%s"}}}}' % (b"y" * 3_900_000),
)  # fmt: skip
TOPICS: Final = (
    f"{TWIN}/update", f"{TWIN}/get", f"{TWIN}/cloud_updated", f"$hw/events/device/{TARGET}/state/update",
    "$hw/events/node/edge-1/membership/get", "$hw/events/device/default/nobody/twin/update",
    "$hw/events/device/a/b/c/twin/update", "$hw/events/device//twin/update", "default/user/x",
    "$hw/events/upload/x", "SYS/dis/upload_records",
)  # fmt: skip
