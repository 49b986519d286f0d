"""What answers of the cloud mean: OK, objects, ObjectResp and failures, whatever comes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import MalformedMessage, Message, new_message
from cloudedge.replies import RequestRefused, result

STATUS = {
    "kind": "Status",
    "status": "Failure",
    "message": 'nodes "x" already exists',
    "reason": "AlreadyExists",
    "code": 409,
}
NODE = {"kind": "Node", "metadata": {"name": "x"}}


def answer(content: Any, operation: str = "response") -> Message:
    return new_message(
        source="edgecontroller",
        group="resource",
        operation=operation,
        resource="null/node/x",
        content=content,
        parent="p",
    )


@pytest.mark.parametrize(
    ("content", "meant"),
    (
        ("OK", None),
        (None, None),
        (NODE, NODE),
        (msgspec.json.encode(NODE).decode(), NODE),  # an object sent as a text
        ({"Object": NODE, "Err": None}, NODE),
        ({"object": NODE, "err": None}, NODE),  # Go matches names without case
        ({"Object": NODE, "Err": {}}, NODE),
        ({"Object": None, "Err": None}, None),
        ("-----BEGIN CERTIFICATE-----\n…", "-----BEGIN CERTIFICATE-----\n…"),
    ),
)
def test_what_was_done(content: Any, meant: Any) -> None:
    assert result(answer(content)) == meant


@pytest.mark.parametrize(
    ("content", "text", "code", "reason"),
    (
        ({"ErrStatus": STATUS}, STATUS["message"], 409, "AlreadyExists"),
        ({"errstatus": STATUS}, STATUS["message"], 409, "AlreadyExists"),
        ({"Object": None, "Err": {"ErrStatus": STATUS}}, STATUS["message"], 409, "AlreadyExists"),
        ({"Object": NODE, "Err": {"ErrStatus": STATUS}}, STATUS["message"], 409, "AlreadyExists"),
        ({"Object": None, "Err": {"ErrStatus": {"reason": "Forbidden", "code": 403}}}, "Forbidden", 403, "Forbidden"),
        ({"Object": None, "Err": {}}, "the cloud gives no reason", 0, ""),
        ({"Object": None, "Err": "text"}, "text", 0, ""),
        ({"ErrStatus": {}}, "the cloud gives no reason", 0, ""),
    ),
)
def test_what_was_refused(content: Any, text: str, code: int, reason: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        result(answer(content))
    assert (str(refused.value), refused.value.code, refused.value.reason) == (text, code, reason)


@pytest.mark.parametrize(
    ("content", "text"), (("not yours", "not yours"), ({"a": 1}, '{"a":1}'), ("", "the cloud gives no reason"))
)
def test_operation_error_is_a_failure_with_its_text(content: Any, text: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        result(answer(content, "error"))
    assert str(refused.value) == text


def test_operation_error_may_carry_what_the_api_says() -> None:
    with pytest.raises(RequestRefused) as refused:
        result(answer({"other": {"message": "x"}, "errstatus": STATUS}, "error"))
    assert (str(refused.value), refused.value.code) == (STATUS["message"], 409)
    assert refused.value.reason == "AlreadyExists"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Object", "Err", "ErrStatus", "code", "message", "reason", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from(["response", "error", "x"]))
def test_whatever_comes_it_is_a_result_or_a_refusal(content: Any, operation: str) -> None:
    refused: RequestRefused | None = None
    try:
        result(answer(content, operation))
    except RequestRefused as error:
        refused = error
    except MalformedMessage:
        assert isinstance(content, str)
    assert refused is None or (str(refused) and type(refused.code) is int)
