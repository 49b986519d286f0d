"""Whether edge core has what the API asks for is told from the declaration as CloudCore's message brought it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.devicecontroller.messages import object_message
from cloudcore.kube import Key, Kind
from cloudedge.facts import spec_digest
from kubetwin.why import StepNumber
from kubetwin.why.walk import walk
from tests.kubetwin.why_world import FACTS, api, device, evidence, facts, model


def digest_at_the_edge(kind: Kind, obj: dict[str, Any]) -> str:
    message = object_message("update", kind, Key("default", obj["metadata"]["name"]), obj)
    return spec_digest(msgspec.json.decode(bytes(message.content))["spec"])


def with_desired(*desired: object) -> dict[str, Any]:
    named = (("temperature", desired[0]), ("set-point", desired[1]))
    return device(properties=[{"name": name, "desired": d} if d != "absent" else {"name": name} for name, d in named])


@pytest.mark.parametrize("desired", ("absent", None, {}, {"value": ""}, {"value": "60"}))
def test_a_label_asks_for_nothing_else(desired: object) -> None:
    obj = with_desired("absent", desired)
    here = msgspec.structs.replace(FACTS, declared_version="9", spec_digest=digest_at_the_edge(DEVICES, obj))
    verdict = walk(evidence(api=api(device=obj), facts=here))
    step = verdict.steps[StepNumber.KNOWN - 1]
    assert (step.state, step.message) == ("ok", "in version 9; 12 at the API asks for the same")


def test_every_wish_counts() -> None:
    wish: dict[str, str] = {"value": "1"}
    asked = (with_desired({}, wish), with_desired(wish, {}), with_desired({}, {}))
    assert len({spec_digest(one["spec"]) for one in asked}) == 3


def test_a_model_arrives_as_it_is() -> None:
    assert digest_at_the_edge(MODELS, model()) == spec_digest(model()["spec"])


@pytest.mark.parametrize(("write", "said"), (("", "an app there asks for that over MQTT"), ("applied", "mapper's log")))
def test_who_asks_for_something_else(write: str, said: str) -> None:
    there = dict(FACTS.properties)
    there["set-point"] = msgspec.structs.replace(there["set-point"], desired="33", write=write)
    step = walk(evidence(facts=facts(properties=there))).steps[StepNumber.DESIRED - 1]
    assert step.state == "broken"
    assert "'33'" in step.message
    assert said in step.todo
