"""CloudHub: the TLS WebSocket server that edge nodes connect to, one session a node."""

from cloudcore.cloudhub.hub import CloudHub, HubSettings, NodeHandler
from cloudcore.cloudhub.session import Session

__all__ = ["CloudHub", "HubSettings", "NodeHandler", "Session"]
