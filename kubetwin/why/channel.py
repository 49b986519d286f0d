"""What to do about a channel between edge core and CloudCore that is broken, by what either says of it. Pure."""

from __future__ import annotations

from typing import Final

__all__ = ["advice_for"]

_MORE_NODES: Final = "raise cloudHub.nodeLimit of that CloudCore, or start another replica"
_ADVICE: Final = {
    "revoked": "somebody shut it out: kubectl get configmap -n kubeedge kubetwin-revoked -o yaml says by which line. "
    "Take that out if it was a mistake; with one certificate revoked, `kubetwin join --force` gets another",
    "a newer connection of the node took over": "another machine, or process, has this node's name and certificate: "
    "stop it, and give it a name of its own with `kubetwin join --node`",
    "cannot join: ": "do what it says: without a certificate this node stays out. What it has to report is kept",
    "the cloud's certificate is not of this time": "compare the clock of this machine with CloudCore's. If both are "
    "right, its certificate has ended: it renews what it made itself; one from a file (tlsCertFile) is to be replaced",
    "clock": "set the clock of this machine, or that of CloudCore's: certificates are good for a time",
    "the certificate is n": "it has another node's certificate: is modules.edged.hostnameOverride what it was when the "
    "node joined? Else `kubetwin join --force` gets one for the name",
    "the node limit": _MORE_NODES,
    "nodes is reached": _MORE_NODES,
    "must be in the cloud's certificate": "dial an address that CloudCore's certificate names "
    "(cloudHub.advertiseAddress, dnsNames), with the CA of this cluster in tlsCaFile",
    "is the certificate of this cloud's CA?": "CloudCore does not take the certificate: it has ended, or is of another "
    "CA. `kubetwin join --force` with a new token gets one",
    "does not own the node": "that CloudCore could not write the node's Lease: does it reach the Kubernetes API? Its "
    "log says more",
}
"""By a part of what is said; the first that is found counts."""
_ELSE: Final = (
    "is CloudCore up, is edgeHub.websocket.server in edgecore.yaml right, does the certificate still hold? "
    "The newest values are kept, and sent when the link is back"
)


def advice_for(trouble: str, otherwise: str = _ELSE) -> str:
    """`trouble`: why there is no channel, in edge core's words, or in CloudCore's."""
    return next((advice for said, advice in _ADVICE.items() if said in trouble), otherwise)
