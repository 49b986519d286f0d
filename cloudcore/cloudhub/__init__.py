"""CloudHub: the TLS WebSocket server that edge nodes connect to, one session a node."""

from cloudcore.cloudhub.hub import CloudHub, HubSettings
from cloudcore.cloudhub.ports import Admission, NodeHandler, Owners
from cloudcore.cloudhub.session import Session

__all__ = ["Admission", "CloudHub", "HubSettings", "NodeHandler", "Owners", "Session"]
