"""Every YAML example of docs/sinks.md is one that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from dmi.crd import device_from_crd
from dmi.push import push_from_pb, push_to_pb
from dmi.settings import unknown_keys
from dmi.types import DeviceId
from mappers.sdk.config import MapperConfig, load_config
from mappers.sdk.sinks.declared import read_push_method
from tests.mappers.sink_world import plane

PAGE = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
EXAMPLES: list[dict[str, Any]] = [yaml.safe_load(t) for t in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)]
PUSH = [e for e in EXAMPLES if not {"kind", "common"} & e.keys()]


def test_there_is_an_example_of_each_kind() -> None:
    kinds = {key for e in PUSH for key in e.get("dbMethod", e)}
    assert kinds == {"http", "mqtt", "otel", "influxdb2", "redis", "TDEngine", "mysql"}


@pytest.mark.parametrize("push", PUSH, ids=lambda push: next(iter(push)))
def test_push_methods(push: dict[str, Any]) -> None:
    over_dmi = push_from_pb(push_to_pb(push, "p"))
    for form in (push, over_dmi):
        outlets, problems = read_push_method(form, "p", DeviceId("plant/meter"), "flow")
        assert (len(outlets), problems) == (1, [])


async def test_the_device(tmp_path: Path) -> None:
    (example,) = (e for e in EXAMPLES if e.get("kind") == "Device")
    async with plane(tmp_path) as data:
        assert not data.declare(device_from_crd(example))
        assert [s.sink for s in data.stats()] == ["mqtt", "influxdb2"]


def test_the_mappers_configuration(tmp_path: Path) -> None:
    (example,) = (e for e in EXAMPLES if "common" in e)
    assert not list(unknown_keys(example, MapperConfig))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(example))
    config = load_config(file)
    defaults = msgspec.structs.asdict(type(config.data)())
    assert (config.data.max_mb, config.data.max_age_s) == (defaults["max_mb"], defaults["max_age_s"])
