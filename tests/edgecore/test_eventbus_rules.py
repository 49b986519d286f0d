"""Topics and topic rules, without a broker."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from dmi import ConfigError, DeviceId, Reported
from edgecore.config import TopicRule
from edgecore.eventbus.outbox import Outgoing
from edgecore.eventbus.rules import Rules, refusal_payload
from edgecore.eventbus.topics import (
    DeviceTopic,
    destination,
    device_topic,
    filter_problem,
    matches,
    topic_problem,
)

BOILER = DeviceId("default/boiler-1")
VALUE = Reported("21.5", "float", 1_760_000_000_000)

LEVELS = st.sampled_from(["a", "b", "", "user", "$hw", "+"])
TOPICS = st.lists(st.sampled_from(["a", "b", "", "user", "$hw"]), min_size=1, max_size=4).map("/".join)
FILTERS = st.tuples(st.lists(LEVELS, min_size=1, max_size=4), st.booleans()).map(
    lambda made: "/".join([*made[0], "#"] if made[1] else made[0])
)


@given(topic=TOPICS, filter_=FILTERS)
def test_filters_match_what_mqtt_says(topic: str, filter_: str) -> None:
    if topic and filter_:
        assert matches(topic, filter_) == topic_matches_sub(filter_, topic), (topic, filter_)


@pytest.mark.parametrize(
    ("topic", "goes_to"),
    (
        ("$hw/events/device/default/boiler-1/twin/update", "twin"),
        ("$hw/events/device/dev/device/twin/get", "twin"),
        ("$hw/events/device/default/boiler-1/twin/cloud_updated", "twin"),
        ("$hw/events/device/default/boiler-1/state/update", "twin"),
        ("$hw/events/node/edge-1/membership/get", "twin"),
        ("$hw/events/upload/a/b", "cloud"),
        ("SYS/dis/upload_records", "cloud"),
        ("default/user/a/b", "cloud"),
        # What edge core itself publishes must not come back to it.
        ("$hw/events/device/default/boiler-1/twin/update/result", None),
        ("$hw/events/device/default/boiler-1/twin/update/document", None),
        ("$hw/events/device/default/boiler-1/twin/update/delta", None),
        ("$hw/events/device/default/boiler-1/twin/get/result", None),
        ("$hw/events/device/default/boiler-1/state/update/result", None),
        ("$hw/events/device/default/boiler-1/updated", None),
        ("$hw/events/device//twin/update/result", None),
        ("$hw/events/node/edge-1/membership/get/result", None),
        ("$hw/events/node/edge-1/membership/updated", None),
        ("$hw/events/node/edge-1/authInfo/get/result", None),
        ("anything", None),
    ),
)
def test_each_topic_has_its_place(topic: str, goes_to: str | None) -> None:
    assert destination(topic) == goes_to


def test_topics_that_the_cloud_subscribed_to_go_to_it_unless_they_are_of_a_twin() -> None:
    stored = ("plant/+/temperature", "$hw/events/device/default/boiler-1/other")
    assert destination("plant/a/temperature", stored) == "cloud"
    assert destination("$hw/events/device/default/boiler-1/other", stored) == "twin"
    assert destination("plant/a/pressure", stored) is None


def test_a_device_topic_is_taken_apart_at_its_slashes() -> None:
    assert device_topic("$hw/events/device/dev/$hw/twin/update") == DeviceTopic("dev", "$hw", "twin/update")
    for odd in ("$hw/events/device/default/boiler-1", "$hw/events/device//d/twin/get", "hw/events/device/a/b/c", ""):
        assert device_topic(odd) is None


def test_topics_and_filters_that_cannot_be() -> None:
    assert not topic_problem("a/b c/ü")
    assert not filter_problem("a/+/#")
    for topic in ("", "a/+", "a/#", "a\0b", "a\nb", "x" * 1025, "\ud800"):
        assert topic_problem(topic), topic
    for filter_ in ("", "a/#/b", "a/b#", "a+/b", "\0", "x" * 1025):
        assert filter_problem(filter_), filter_


def rules(*made: TopicRule) -> Rules:
    return Rules(made, "eventBus.topicRules")


def test_the_first_rule_that_fits_counts() -> None:
    both = rules(TopicRule(devices="default/boiler-*", access="read"), TopicRule(access="none"))
    assert both.of(BOILER).access == "read"
    assert both.of(DeviceId("plant/boiler-1")).access == "none"
    assert rules().of(BOILER).access == "readWrite"


@pytest.mark.parametrize(
    ("access", "action", "is_refused"),
    (
        ("readWrite", "twin/update", False),
        ("readWrite", "twin/get", False),
        ("read", "twin/get", False),
        ("read", "twin/update", True),
        ("read", "twin/cloud_updated", True),
        ("read", "state/update", True),
        ("none", "twin/get", True),
        ("none", "twin/update", True),
    ),
)
def test_what_an_app_may_do(access: Any, action: str, is_refused: bool) -> None:
    made = rules(TopicRule(devices="default/*", access=access))
    refused = made.refusal(f"$hw/events/device/default/boiler-1/{action}")
    assert bool(refused) == is_refused
    if refused is not None:
        asked, reason = refused
        assert asked.result() == f"$hw/events/device/default/boiler-1/{action}/result"
        assert "default/boiler-1" in reason
        assert access in reason
    assert made.refusal(f"$hw/events/device/other/boiler-1/{action}") is None
    assert made.is_hidden("$hw/events/device/default/boiler-1/twin/update/document") == (access == "none")
    assert not made.is_hidden("$hw/events/node/edge-1/membership/updated")


@given(payload=st.binary(max_size=60))
def test_a_refusal_answers_whatever_was_asked(payload: bytes) -> None:
    answer = msgspec.json.decode(refusal_payload(payload, "no"))
    assert (answer["code"], answer["reason"]) == (400, "no")
    assert isinstance(answer["event_id"], str)


def test_a_refusal_carries_the_event_id() -> None:
    assert msgspec.json.decode(refusal_payload(b'{"event_id":"e7"}', "no"))["event_id"] == "e7"


def test_values_are_published_bare_or_as_json() -> None:
    bare = rules(TopicRule(publish="plant/{namespace}/{device}/{property}", qos=1, retain=True))
    assert bare.publication(BOILER, "temp", VALUE) == Outgoing("plant/default/boiler-1/temp", b"21.5", 1, True)
    full = rules(TopicRule(devices="default/*", publish="plant/{device}/{property}", payload="json"))
    made = full.publication(BOILER, "temp", Reported("21.5", "float", 5, "bad", "no reply"))
    assert isinstance(made, Outgoing)
    assert msgspec.json.decode(made.payload) == {
        "value": "21.5",
        "type": "float",
        "collected": 5,
        "quality": "bad",
        "reason": "no reply",
    }
    assert bare.publication(BOILER, "temp", Reported()) is None, "nothing was ever reported"
    assert full.publication(DeviceId("plant/x"), "temp", VALUE) is None, "no rule fits"


def test_what_is_retained_can_be_cleared() -> None:
    topic = "plant/{namespace}/{device}/{property}"
    kept = rules(TopicRule(devices="default/*", publish=topic, qos=1, retain=True))
    assert kept.clearance(BOILER, "temp") == Outgoing("plant/default/boiler-1/temp", b"", 1, True)
    assert kept.clearance(BOILER, "a/b") is None
    assert kept.clearance(DeviceId("plant/x"), "temp") is None
    assert rules(TopicRule(publish=topic)).clearance(BOILER, "temp") is None, "the broker has nothing"


def test_only_json_says_how_good_a_value_is() -> None:
    topic = "plant/{namespace}/{device}/{property}"
    assert rules(TopicRule(publish=topic, payload="json")).says_quality(BOILER)
    assert not rules(TopicRule(publish=topic)).says_quality(BOILER)
    assert not rules(TopicRule(payload="json")).says_quality(BOILER)


@pytest.mark.parametrize("name", ("a/b", "a+", "#", "\0", ""))
def test_a_name_never_changes_the_shape_of_a_topic(name: str) -> None:
    made = rules(TopicRule(publish="v/{namespace}/{device}/{property}")).publication(BOILER, name, VALUE)
    assert isinstance(made, str)
    assert "default/boiler-1" in made


NAME = st.from_regex(re.compile(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", re.ASCII), fullmatch=True)


@given(namespace=NAME, device=NAME, name=st.text(min_size=1, max_size=8), value=st.text(max_size=20))
def test_what_is_filled_in_is_read_back(namespace: str, device: str, name: str, value: str) -> None:
    made = rules(
        TopicRule(publish="v/{namespace}/d-{device}/{property}", write="w/{namespace}/d-{device}/{property}/set")
    )
    published = made.publication(DeviceId(f"{namespace}/{device}"), name, Reported(value, "string", 1))
    if not isinstance(published, Outgoing):
        assert set(name) & set("/+#") or topic_problem(name)
        return
    topic = published.topic.replace("v/", "w/", 1) + "/set"
    assert matches(topic, made.filters[0])
    write = made.write(topic, value.encode())
    assert write is not None
    assert write.topic == f"$hw/events/device/{namespace}/{device}/twin/update"
    update = msgspec.json.decode(write.payload)
    assert update["twin"] == {name: {"expected": {"value": value}}}


def test_a_write_counts_only_by_the_rule_of_its_device() -> None:
    made = rules(
        TopicRule(devices="default/boiler-1", access="read"),
        TopicRule(devices="*", write="{namespace}/{device}/{property}/set"),
    )
    assert made.write("default/boiler-1/temp/set", b"1") is None, "its own rule has no write"
    assert made.write("default/boiler-2/temp/set", b"1") is not None
    assert made.write("default/boiler-2/temp/get", b"1") is None
    with pytest.raises(UnicodeDecodeError):
        made.write("default/boiler-2/temp/set", b"\xff")


def test_a_rule_of_one_device_needs_no_names_in_its_topic() -> None:
    made = rules(TopicRule(devices="default/boiler-1", write="boiler/{property}"))
    write = made.write("boiler/temp", b"30")
    assert write is not None
    assert write.topic == "$hw/events/device/default/boiler-1/twin/update"


@pytest.mark.parametrize(
    ("made", "path", "says"),
    (
        ([{"publish": "a/{property}"}], "[0].publish", "{namespace}, {device}"),
        ([{"devices": "default/*", "write": "a/{property}"}], "[0].write", "{device}"),
        ([{"devices": "default/b", "publish": "a"}], "[0].publish", "{property}"),
        ([{"publish": "{namespace}/{device}/{thing}"}], "[0].publish", "{thing}"),
        ([{"publish": "{namespace}/{device}-{property}"}], "[0].publish", "two names"),
        ([{"publish": "{namespace}/{device}/{property}/#"}], "[0].publish", "wildcards"),
        ([{"write": "+/{namespace}/{device}/{property}"}], "[0].write", "wildcards"),
        ([{"write": "{namespace}/{device}/{property"}], "[0].write", "{property"),
        ([{"write": "{namespace}/{device!r}/{property}"}], "[0].write", "as it is"),
        ([{"write": "$hw/{namespace}/{device}/{property}"}], "[0].write", "$"),
        ([{"publish": "{namespace}/user/{device}/{property}"}], "[0].publish", "cloud"),
        ([{"publish": "{namespace}/{device}/{property}/{property}"}], "[0].publish", "once"),
        ([{"devices": ""}], "[0].devices", "empty"),
        (
            [{"publish": "v/{namespace}/{device}/{property}", "write": "v/{namespace}/{device}/{property}"}],
            "[0].write",
            "overlaps",
        ),
        (
            [
                {"devices": "a/*", "write": "{namespace}/{device}/{property}"},
                {"devices": "b/*", "write": "{device}/{namespace}/{property}"},
            ],
            "[0].write",
            "either",
        ),
    ),
)
def test_rules_that_cannot_work_are_refused_by_name(made: list[dict[str, Any]], path: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rules(*(TopicRule(**one) for one in made))
    assert refused.value.path.endswith(path)
    assert says in refused.value.problem


def test_two_rules_may_share_one_template() -> None:
    shared = "{namespace}/{device}/{property}/set"
    made = rules(TopicRule(devices="a/*", write=shared, access="read"), TopicRule(devices="b/*", write=shared))
    assert made.filters == ("+/+/+/set",)
    assert made.write("a/x/p/set", b"1") is not None
    assert made.write("c/x/p/set", b"1") is None
