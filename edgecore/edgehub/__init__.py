"""EdgeHub: the edge's end of the cloud channel. It connects, keeps alive, reconnects, and passes messages on."""

from edgecore.edgehub.hub import EdgeHub, keepalive
from edgecore.edgehub.ratelimit import TokenBucket
from edgecore.edgehub.routing import route

__all__ = ["EdgeHub", "TokenBucket", "keepalive", "route"]
