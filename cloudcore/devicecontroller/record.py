"""What the writer of DeviceStatuses keeps of one device."""

from __future__ import annotations

from cloudcore.devicecontroller.known import Known
from cloudcore.devicecontroller.links import NodeLink
from cloudcore.devicecontroller.shown import Shown
from cloudcore.kube import Object

__all__ = ["Record"]


class Record:
    """The one place where this is kept. Only the writer changes it."""

    __slots__ = (
        "failures",
        "heard",
        "known",
        "lazy_since",
        "node",
        "paid_until",
        "patched_at",
        "shown",
        "trouble",
        "uid",
        "waiting",
        "writing",
    )

    def __init__(self, uid: str, node: str, known: Known, shown: Shown) -> None:
        self.uid = uid
        self.known = known
        self.heard = False
        """Whether the node has reported anything: until then, `known` is what the API says."""
        self.shown = shown
        """As rendered last, written or not: times of transition are those of the truth, not of the writes."""
        self.node = node
        """Whose word the state is."""
        self.waiting: dict[str, NodeLink] = {}
        """Message ids of reports to confirm once what they said is written, and who sent them."""
        self.writing: Object | None = None
        """What the API is being told."""
        self.paid_until = 0.0
        """Loop time that the PATCHes so far have used up."""
        self.patched_at = float("-inf")
        self.lazy_since: float | None = None
        """Loop time since when nothing is to be written but what can wait."""
        self.failures = 0
        self.trouble = ""
