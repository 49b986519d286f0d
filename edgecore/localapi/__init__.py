"""The local API: what programs on this machine, and through the cloud kubectl, can ask edge core. It changes nothing.

`api` has the endpoints, `server` the socket, `answers` the questions that come through the cloud, `views` the shapes.
"""

from edgecore.localapi.answers import Answers
from edgecore.localapi.server import serve_api
from edgecore.localapi.sources import Sources

__all__ = ["Answers", "Sources", "serve_api"]
