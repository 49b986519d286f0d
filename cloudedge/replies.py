"""What the cloud's answer to a request means: pure functions over a reply (channel contract 1.2, 8.1 #14, 9 row 8).

An answer is one of four things: the text `OK`, a bare object, an ObjectResp (`{"Object":…,"Err":…}`), or a failure,
which comes as operation `error` with a text, or as `{"ErrStatus":…}` where an object was asked for.
"""

from __future__ import annotations

from typing import Any, Final

from cloudedge.errors import ChannelError
from cloudedge.message import OK, Message

__all__ = ["RequestRefused", "result"]

_MAX_TEXT: Final = 512


class RequestRefused(ChannelError):
    """The cloud did not do what it was asked. `code` and `reason` are the API's own (409, `AlreadyExists`); 0 and empty
    where the cloud gave only a text.
    """

    def __init__(self, text: str, *, code: int = 0, reason: str = "") -> None:
        super().__init__(text[:_MAX_TEXT])
        self.code = code
        self.reason = reason


def result(reply: Message) -> Any:
    """The object that was asked for or written, as parsed JSON; None: done, and there is no object to show.

    Raises:
        RequestRefused: It failed, as the cloud or the API says.
        MalformedMessage: The content is not JSON.
    """
    if reply.route.operation == "error":
        raise _failure(reply)
    if reply.is_ok:
        return None
    content = _without_quotes(reply)
    if not isinstance(content, dict):
        return content
    names = {name.lower(): name for name in content}  # Go matches member names without case
    if "errstatus" in names:
        raise _refusal(content[names["errstatus"]])
    if names.keys() == {"object", "err"}:
        return _of_object_resp(content[names["object"]], content[names["err"]])
    return content


def _of_object_resp(obj: Any, err: Any) -> Any:
    """`"Err":{}` is what Go makes of an error that is none of the API's. Upstream's edge core takes it for success;
    with an object it is one, without it is not.
    """
    status = next((v for k, v in err.items() if k.lower() == "errstatus"), None) if isinstance(err, dict) else err
    if status or (err is not None and obj is None):
        raise _refusal(status)
    return obj


def _refusal(status: Any) -> RequestRefused:
    """From a metav1.Status."""
    if not isinstance(status, dict) or not status:
        return RequestRefused("the cloud gives no reason" if not status else str(status))
    code, reason = status.get("code"), status.get("reason")
    reason = reason if isinstance(reason, str) else ""
    text = status.get("message")
    return RequestRefused(
        text if isinstance(text, str) and text else reason or "the cloud gives no reason",
        code=code if type(code) is int else 0,
        reason=reason,
    )


def _without_quotes(reply: Message) -> Any:
    """The content. A JSON text is what it contains, if that is JSON: a PEM or a plain text is not."""
    if not bytes(reply.content).startswith(b'"'):
        return reply.data()
    text = reply.data(str)
    return OK if text == OK else reply.data() if text[:1] in ("{", "[") else text


def _failure(reply: Message) -> RequestRefused:
    """A text, or what Go makes of an error of the API's (channel contract 1.2)."""
    content = bytes(reply.content)
    if content.startswith(b'"'):
        return RequestRefused(reply.data(str) or "the cloud gives no reason")
    if content.startswith(b"{"):
        found = reply.data(dict)
        status = next((value for name, value in found.items() if str(name).lower() == "errstatus"), None)
        if isinstance(status, dict):
            return _refusal(status)
    return RequestRefused(content[:_MAX_TEXT].decode(errors="replace"))
