"""Questions that somebody with kubectl asks a node through a DeviceStatus (ADR 15, `cloudedge.queries`).

A question is an entry of `status.extensions.queries`. It goes to the device's node as one message; the answer, or why
there is none, is put beside it. Entries are removed a minute after they were seen, unless the asker did so before.
Times of the asker are not looked at: its clock may be wrong.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from cloudcore.devicecontroller.kinds import STATUSES, node_name
from cloudcore.devicecontroller.links import Alone, Links, NodeLink, Writers
from cloudcore.devicecontroller.messages import SOURCE
from cloudcore.kube import (
    Informer,
    Key,
    KeyedQueue,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    TooManyRequests,
    Unavailable,
)
from cloudcore.kube.decoding import is_deep
from cloudedge import MalformedMessage, Message, new_message
from cloudedge.message import now_ms
from cloudedge.queries import (
    ANSWER_TIMEOUT_S,
    MAX_ANSWER_BYTES,
    NODE_AWAY,
    NODE_SILENT,
    Answer,
    Query,
    query_resource,
)

__all__ = ["Queries", "QuerySettings", "entries_of"]

logger = logging.getLogger(__name__)

_ID: Final = re.compile(r"[a-z0-9]{8,32}")
MAX_PROPERTY_CHARACTERS: Final = 253
MAX_DEPTH: Final = 32
"""Of an answer. What can be read at one depth of calls cannot be written at another."""
_NO_ANSWER: Final = msgspec.Raw(b"null")


class QuerySettings(Struct, frozen=True):
    per_device: int = 8
    """Questions about a device at a time, answered or not. Later ones get an error."""
    rate: float = 20.0
    """Questions passed on a second, in the long run, for the whole cluster."""
    burst: int = 50
    timeout_s: float = ANSWER_TIMEOUT_S
    keep_s: float = 60.0
    """How long an entry may stay."""
    retry_s: float = 2.0
    """Between two tries to write while the API refuses."""
    max_bytes: int = 4 * MAX_ANSWER_BYTES
    """Of all answers of a device together: they lie in one API object."""


class _Asked:
    """An entry that has been seen."""

    __slots__ = ("answer", "bytes", "message_id", "node", "remove_at", "written")

    def __init__(self, remove_at: float) -> None:
        self.remove_at = remove_at
        self.message_id = ""
        """Of the question while its answer is waited for."""
        self.node = ""
        self.answer: Object | None = None
        self.written = False
        self.bytes = 0


def entries_of(status: Object | None) -> Mapping[str, Any]:
    """Questions by id, as they are in the DeviceStatus; nothing, if there is nothing of the kind."""
    found: Any = status
    for name in ("status", "extensions", "queries"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


class Queries:
    """`look` at each DeviceStatus that changed, `take` what nodes answer; `run` in one task writes."""

    def __init__(
        self,
        client: KubeClient,
        find_device: Callable[[Key], Object | None],
        statuses: Informer,
        links: Links,
        *,
        knows_questions: Callable[[Key], bool],
        writers: Writers | None = None,
        settings: QuerySettings | None = None,
    ) -> None:
        """`knows_questions`: whether the edge core that has the device is one that answers."""
        self.counts: Counter[str] = Counter()
        """What became of questions and answers."""
        self.why_away: Callable[[str], str] = lambda _: ""
        """Why a node is not let in, if it is not."""
        self._client = client
        self._find_device = find_device
        self._statuses = statuses
        self._links = links
        self._knows_questions = knows_questions
        self._writers = writers or Alone()
        self._settings = settings or QuerySettings()
        self._loop = asyncio.get_running_loop()
        self._free_at = float("-inf")
        self._asked: dict[Key, dict[str, _Asked]] = {}
        self._sent: dict[str, tuple[Key, str, asyncio.TimerHandle]] = {}
        """By id of the message to the node: device, question, and when it is too late for the answer."""
        self._held: dict[str, dict[str, Message]] = {}
        """By node and id: questions to nodes that are not here, and may be at once."""
        self._early: set[Key] | None = set()
        """To be looked at once devices are known; None: they are."""
        self._queue: KeyedQueue[Key] = KeyedQueue()

    def look(self, key: Key, status: Object | None) -> None:
        """A DeviceStatus changed, or is gone. Passes new questions on; costs nothing where there are none."""
        entries = entries_of(status)
        asked = self._asked.get(key)
        if not entries and asked is None:
            return
        if self._early is not None:
            self._early.add(key)
            return
        device = self._find_device(key)
        if not self._writers.writes_for(node_name(device) if device is not None else ""):
            self._leave(key)
            return
        asked = self._asked.setdefault(key, {})
        for id_ in asked.keys() - entries.keys():
            self._forget(asked.pop(id_))
        for id_, entry in entries.items():
            if id_ not in asked:
                self._open(key, id_, entry, asked)
        if not asked:
            del self._asked[key]

    def _leave(self, key: Key) -> None:
        """Another replica answers questions about the device."""
        for asked in self._asked.pop(key, {}).values():
            self._forget(asked)

    def connected(self, link: NodeLink) -> None:
        for question in self._held.pop(link.node, {}).values():
            link.post(question)

    def take(self, link: NodeLink, key: Key, message: Message) -> None:
        """What a node says in answer to a question; anything else is counted and forgotten."""
        sent = self._sent.get(message.header.parent_msg_id)
        if sent is None or sent[0] != key:
            self.counts["answer to no question"] += 1
            return
        _, id_, _ = sent
        if self._asked[key][id_].node != link.node:
            self.counts["answer of another node"] += 1
            return
        if len(bytes(message.content)) > MAX_ANSWER_BYTES + 4096:
            self._answer(key, id_, error=f"the answer is larger than the {MAX_ANSWER_BYTES} bytes it may have")
            return
        try:
            answer = message.data(Answer)
            deep = not answer.error and _is_deep(answer.result)
        except (MalformedMessage, msgspec.MsgspecError, UnicodeDecodeError) as error:  # the latter: of the result
            self._answer(key, id_, error=f"the node's answer cannot be read: {error}"[:1024])
            return
        if deep:
            self._answer(key, id_, error=f"the node's answer is nested deeper than {MAX_DEPTH} levels")
            return
        self._answer(key, id_, result=answer.result, error=answer.error[:1024])

    def _away(self, node: str) -> str:
        reason = self.why_away(node)
        return f'node "{node}" is not connected to CloudHub' + (f": {reason}" if reason else "")

    def close(self) -> None:
        for _, _, timer in self._sent.values():
            timer.cancel()
        self._sent.clear()
        self._queue.close()

    async def run(self) -> None:
        """Write answers, and remove what is old, until cancelled. Start it when the caches are complete."""
        early, self._early = self._early or (), None
        for key in early:
            self.look(key, self._statuses.get(key))
        while True:
            key = await self._queue.get()
            try:
                await self._writers.granted()
                await self._write(key)
            except NotFound:
                pass  # the watch will say so
            except KubeError as error:
                self.counts["writes failed"] += 1
                if not isinstance(error, Unavailable | TooManyRequests):
                    logger.warning("device %s: answers cannot be written: %s; trying on", key, error)
                self._queue.add(key, delay_s=max(self._settings.retry_s, min(error.retry_after_s, 30.0)))
            except Exception:  # one device must not stop all others
                logger.exception("device %s: answers could not be written", key)
            finally:
                self._queue.done(key)

    def _open(self, key: Key, id_: str, entry: object, asked: dict[str, _Asked]) -> None:
        """A question nobody has seen before, or one from before a restart."""
        now = self._loop.time()
        new = asked[id_] = _Asked(now + self._settings.keep_s)
        self._queue.add(key, delay_s=self._settings.keep_s)
        if isinstance(entry, dict) and entry.get("answer") is not None:
            new.written = True
            return
        if len(asked) > 4 * self._settings.per_device:
            self.counts["removed: too many"] += 1
            new.remove_at = now
            self._queue.add(key)
            return
        try:
            query = _read(id_, entry)
            node = self._find_node(key, len(asked))
        except ValueError as error:
            self._answer(key, id_, error=str(error))
            return
        link = self._links.get(node)
        if link is None and not self._links.grace_left_s(node):
            self._answer(key, id_, error=self._away(node), reason=NODE_AWAY)
            return
        question = new_message(
            source=SOURCE,
            group="twin",
            operation="get",
            resource=query_resource(key.namespace, key.name),
            content=query,
        )
        timer = self._loop.call_later(self._settings.timeout_s, self._give_up, question.id)
        self._sent[question.id] = (key, id_, timer)
        new.message_id, new.node = question.id, node
        self.counts["asked"] += 1
        if link is None:
            self._held.setdefault(node, {})[question.id] = question
        else:
            link.post(question)

    def _find_node(self, key: Key, number: int) -> str:
        """Whom to ask the question, the device's `number`th.

        Raises:
            ValueError: Nowhere, or not now; says why.
        """
        if number > self._settings.per_device:
            raise ValueError(f"{self._settings.per_device} questions about the device wait already; ask again later")
        device = self._find_device(key)
        if device is None:
            raise ValueError(f"there is no Device {key}")
        node = node_name(device)
        if not node:
            raise ValueError("spec.nodeName of the Device is empty, so there is no node to ask")
        now = self._loop.time()
        self._free_at = max(self._free_at, now - self._settings.burst / self._settings.rate) + 1 / self._settings.rate
        if self._free_at > now:
            self._free_at -= 1 / self._settings.rate
            raise ValueError("too many questions in the cluster at the moment; ask again in a few seconds")
        return node

    def _give_up(self, message_id: str) -> None:
        key, id_, _ = self._sent[message_id]
        node = self._asked[key][id_].node
        if self._links.get(node) is None:
            self._answer(key, id_, error=self._away(node), reason=NODE_AWAY)
            return
        error = f'node "{node}" is connected, and its edge core did not answer within {self._settings.timeout_s:g} s'
        if self._knows_questions(key):
            self._answer(key, id_, error=error, reason=NODE_SILENT)
        else:
            self._answer(key, id_, error=f"{error}; stock ones never do")

    def _answer(
        self, key: Key, id_: str, *, result: msgspec.Raw = _NO_ANSWER, error: str = "", reason: str = ""
    ) -> None:
        """Have it written."""
        asked = self._asked[key][id_]
        self._forget(asked)
        if not error:
            asked.bytes = len(bytes(result))
            if sum(a.bytes for a in self._asked[key].values()) > self._settings.max_bytes:
                asked.bytes = 0
                error = "the answers to other questions take all the room; ask again in a minute"
            if bytes(result) == b"null":  # a merge patch cannot say null
                error = "the node answered with nothing"
        self.counts["answered with an error" if error else "answered"] += 1
        said = {"error": error} if error else {"result": msgspec.json.decode(result)}
        if reason:
            said["reason"] = reason
        asked.answer = {**said, "answered_ms": now_ms()}
        self._queue.add(key)

    def _forget(self, asked: _Asked) -> None:
        """Stop waiting for an answer of the node."""
        sent = self._sent.pop(asked.message_id, None)
        held = self._held.get(asked.node)
        if held is not None and held.pop(asked.message_id, None) is not None and not held:
            del self._held[asked.node]
        asked.message_id = ""
        if sent is not None:
            sent[2].cancel()

    async def _write(self, key: Key) -> None:
        """All that is to be written about one device, in one PATCH."""
        now = self._loop.time()
        asked = self._asked.get(key, {})
        changes: dict[str, Any] = {}
        for id_, one in asked.items():
            if one.remove_at <= now:
                changes[id_] = None
            elif one.answer is not None and not one.written:
                changes[id_] = {"answer": one.answer}
        if changes:
            patch = {"status": {"extensions": {"queries": changes}}}
            answer = await self._client.patch(STATUSES, key, patch)
            for id_, change in changes.items():
                if change is None:
                    self.counts["removed"] += 1
                elif id_ in asked:
                    asked[id_].written, asked[id_].answer = True, None
            self._statuses.observe(answer)
        if left := [one.remove_at for one in asked.values() if one.remove_at > now]:
            self._queue.add(key, delay_s=min(left) - self._loop.time())


def _is_deep(result: msgspec.Raw) -> bool:
    try:
        return is_deep(msgspec.json.decode(result), MAX_DEPTH)
    except RecursionError:
        return True


def _read(id_: str, entry: object) -> Query:
    """The question of an entry.

    Raises:
        ValueError: It is none; says what is wrong, and where.
    """
    if not _ID.fullmatch(id_):
        raise ValueError("the id of a question is 8 to 32 small letters and digits")
    if not isinstance(entry, dict):
        raise ValueError("a question is an object with the key ask")
    try:
        query: Query = msgspec.convert({**entry, "id": id_}, Query)
    except msgspec.ValidationError as error:
        raise ValueError(f"the question cannot be read: {error}") from error
    if query.limit < 1:
        raise ValueError("the question cannot be read: Expected `int` >= 1 - at `$.limit`")
    if len(query.property) > MAX_PROPERTY_CHARACTERS:
        raise ValueError(f"the question cannot be read: property has more than {MAX_PROPERTY_CHARACTERS} characters")
    return query
