"""Devices and models that could come from a manifest."""

from hypothesis import strategies as st

from dmi.types import (
    PROPERTY_TYPES,
    DesiredSpec,
    Device,
    DeviceMethod,
    DeviceModel,
    DeviceProperty,
    ModelProperty,
    NodeName,
    Visitor,
)

names = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
# What DMI keeps of a number with a fraction is its shortest 32-bit decimal: up to six digits survive.
float32 = st.integers(-999_999, 999_999).map(lambda x: x / 1000).map(lambda x: int(x) if x.is_integer() else x)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | float32
configs = st.dictionaries(names, scalars, max_size=4)
visitors = st.builds(Visitor, protocol=names, config=configs)
pushes = (
    st.none()
    | st.just({"mqtt": {"address": "tcp://192.0.2.1:1883", "topic": "a/b", "qos": 1, "retained": True}})
    | st.just(
        {
            "http": {"hostName": "http://192.0.2.1", "port": 8080, "requestPath": "/x", "timeout": 1000},
            "dbMethod": {
                "TDEngine": {"TDEngineClientConfig": {"addr": "192.0.2.1:6041", "dbName": "plant"}},
                "influxdb2": {
                    "influxdb2DataConfig": {"measurement": "m", "tag": {"hostName": "kept"}, "fieldKey": "f"}
                },
            },
            "anomalyDetection": {"window": 120, "threshold": 3.5, "algorithm": "zscore"},
        }
    )
)

models = st.builds(
    DeviceModel,
    namespace=names,
    name=names,
    protocol=names,
    protocol_config=configs,
    properties=st.lists(
        st.builds(
            ModelProperty,
            name=names,
            type=st.sampled_from(PROPERTY_TYPES),
            access_mode=st.sampled_from(["ReadOnly", "ReadWrite"]),
            minimum=texts,
            maximum=texts,
            unit=texts,
            description=texts,
            visitor=st.none() | visitors,
        ),
        max_size=4,
        unique_by=lambda p: p.name,
    ).map(tuple),
)

devices = st.builds(
    Device,
    namespace=names,
    name=names,
    model=names,
    node=names.map(NodeName),
    protocol=names,
    protocol_config=configs,
    properties=st.lists(
        st.builds(
            DeviceProperty,
            name=names,
            desired=st.builds(DesiredSpec, value=texts, metadata=st.dictionaries(names, texts, max_size=2)),
            visitor=visitors,
            collect_cycle_ms=st.integers(0, 10**10),
            report_cycle_ms=st.integers(0, 10**10),
            report_to_cloud=st.booleans(),
            push_method=pushes,
        ),
        max_size=4,
        unique_by=lambda p: p.name,
    ).map(tuple),
    methods=st.lists(
        st.builds(DeviceMethod, name=names, description=texts, property_names=st.lists(names, max_size=3).map(tuple)),
        max_size=2,
    ).map(tuple),
    report_state=st.booleans(),
    state_report_cycle_ms=st.integers(0, 10**9),
)
