"""Whatever the cores say of a broken channel, what to do fits it."""

from __future__ import annotations

from pathlib import Path

import pytest

import kubetwin
from kubetwin.why.channel import _ADVICE, advice_for
from tests.docs.test_pages import is_said

LOST = "connection to wss://cloud:10000 is closed: "


@pytest.mark.parametrize(
    ("trouble", "todo"),
    (
        (LOST + "node edge-1 is revoked", "kubetwin-revoked"),
        ('node "edge-1" is not connected to CloudHub: node edge-1 is revoked', "kubetwin-revoked"),
        (LOST + "a newer connection of the node took over", "a name of its own"),
        (LOST + "the certificate is not node edge-1's", "hostnameOverride"),
        ('node "edge-1" is not connected to CloudHub: the certificate is node edge-9\'s', "hostnameOverride"),
        (
            "x.crt: the certificate has expired (by this machine's clock …); cannot join: there is no join token",
            "do what",
        ),
        (
            "x.crt: the certificate is not valid yet: by this machine's clock it is 2026-11-23 12:26 UTC",
            "set the clock",
        ),
        ("TLS: … (the cloud's certificate is not of this time: is this machine's clock right?)", "tlsCertFile"),
        (LOST + "the node limit is reached", "nodeLimit"),
        ("wss://cloud:10000: answered 503 'node edge-1: the limit of 500 nodes is reached'", "nodeLimit"),
        (LOST + "this cloud core does not own the node yet", "Lease"),
        (LOST[:-2], "is CloudCore up"),
        ("connection refused", "is CloudCore up"),
    ),
)
def test_what_to_do_fits(trouble: str, todo: str) -> None:
    assert todo in advice_for(trouble)


@pytest.mark.parametrize("said", list(_ADVICE))
def test_advice_is_for_what_is_said(said: str) -> None:
    """Or it is never given: texts change. Our own advice does not count."""
    sources = (file for part in ("cloudcore", "cloudedge", "edgecore") for file in _files(part))
    assert any(said in file.read_text() for file in sources)
    assert is_said(said)


def _files(package: str) -> list[Path]:
    return list((Path(kubetwin.__file__).parents[1] / package).rglob("*.py"))
