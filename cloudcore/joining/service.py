"""The HTTPS service that nodes join at (channel contract 3.3): the CA for everybody, a certificate for who has a join
token or a certificate that nears its end, and whether a node's name is taken.

Everybody who reaches the port can talk to it, so everything is small, has a deadline, and is closed after one answer.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cloudcore.audit import Audit
from cloudcore.joining.admission import identity_refusal
from cloudcore.joining.attempts import Attempts
from cloudcore.joining.credentials import Credentials
from cloudcore.joining.revocations import Revocations
from cloudcore.kube import Key, Kind, KubeClient, KubeError, NotFound
from cloudedge import tls
from cloudedge.certificates import names_of
from cloudedge.signing import RequestRefused, parse_usages, sign_request
from cloudedge.token import BadToken, verify_bearer
from dmi.metrics import Metrics
from dmi.web.http import HttpError, Limits, Request, Response
from dmi.web.routes import Route, find_route
from dmi.web.server import HttpServer

__all__ = ["JoinService", "JoinSettings"]

logger = logging.getLogger(__name__)

NODES: Final = Kind(group="", version="v1", plural="nodes", kind="Node")
LIMITS: Final = Limits(idle_s=5.0, read_s=10.0, one_request=True)
CONNECTIONS: Final = 128
"""At a time; one costs up to 300 KB, most of it asyncio's buffer for TLS."""
PER_ADDRESS: Final = 32
BAD_TOKENS: Final = 20
"""A minute, of one address; what is bad beyond is answered with no reason and no line in the log."""
NODE_QUESTIONS: Final = 60
"""A minute, of one address: each is a request to the API server."""


class JoinSettings(Struct, frozen=True):
    host: str = "0.0.0.0"  # noqa: S104 - upstream's default; nodes come from outside, with a token
    port: int = 10002
    """0: any free one, then see `JoinService.port`."""
    days: int = 365
    """A node's certificate lasts."""
    strict: bool = True


class JoinService:
    """`listen`, then `run` it in a task."""

    def __init__(
        self,
        settings: JoinSettings,
        *,
        client: KubeClient,
        credentials: Credentials,
        revocations: Revocations,
        audit: Audit,
        unready: Callable[[], str] = lambda: "",
        metrics: Metrics | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """`unready`: why nodes are not to be sent here now; empty: they may."""
        self.port = settings.port
        self._settings = settings
        self._client = client
        self._credentials = credentials
        self._revocations = revocations
        self._audit = audit
        self._unready = unready
        self._context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._bad_tokens = Attempts(BAD_TOKENS)
        self._questions = Attempts(NODE_QUESTIONS)
        self._routes = (
            Route("GET", "/ca.crt", self._ca),
            Route("GET", "/edge.crt", self._certificate),
            Route("GET", "/node/{name}", self._node),
            Route("GET", "/healthz", self._healthz),
            Route("GET", "/readyz", self._readyz),
        )
        self._server = HttpServer(
            self._answer,
            limits=limits,
            tls=lambda: self._context,
            connections=CONNECTIONS,
            per_address=PER_ADDRESS,
        )
        metrics = metrics or Metrics()
        self._issued = metrics.counter(
            "kubetwin_cloudcore_certificates_issued_total", "Certificates made for nodes.", "with"
        )
        metrics.counted(
            "kubetwin_cloudcore_join_turned_away_total",
            "Connections to the join port that were closed before a request.",
            "reason",
            read=lambda: {("tls",): self._server.tls_failures, ("address",): self._server.turned_away},
        )
        metrics.counted(
            "kubetwin_cloudcore_join_answers_total",
            "Answers of the join port by HTTP status.",
            "code",
            read=lambda: {(str(code),): count for code, count in self._server.responses.items()},
        )

    @property
    def address(self) -> str:
        return f"{self._settings.host}:{self.port}"

    def listen(self) -> None:
        """Raises: OSError: The address cannot be listened on."""
        self._context = self._credentials.context(certificate_required=False)
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        self._listener = socket.create_server((self._settings.host, self._settings.port), family=family, backlog=1024)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._listener is None:
            self.listen()
        assert self._listener is not None  # noqa: S101 - `listen` sets it
        logger.info("nodes join at https://%s", self.address)
        await self._server.run([self._listener])

    async def _answer(self, request: Request) -> Response:
        route, params = find_route(self._routes, request.method, request.path)
        return await route.endpoint(replace(request, params=params))

    async def _ca(self, _request: Request) -> Response:
        return Response(200, self._credentials.ca_der, "application/octet-stream")

    async def _healthz(self, _request: Request) -> Response:
        return _text("ok")

    async def _readyz(self, _request: Request) -> Response:
        reason = self._unready()
        return _text("ok") if not reason else _text(reason, 503)

    async def _node(self, request: Request) -> Response:
        name, address = request.params["name"], request.peer.address
        if not tls.NODE_NAME.fullmatch(name):
            return _text("Node not found", 404)
        _wait(self._questions, address)
        self._questions.add(address)
        try:
            await self._client.get(NODES, Key("", name))
        except NotFound:
            return _text("Node not found", 404)
        except KubeError as error:
            logger.warning("whether node %s exists cannot be said: %s", name, error)
            raise HttpError(500, "the API server does not say; the log says more") from None
        return _text("Node found")

    async def _certificate(self, request: Request) -> Response:
        node, ca = request.headers.get("nodename", ""), self._credentials.ca
        if not tls.NODE_NAME.fullmatch(node):
            _wait(self._bad_tokens, request.peer.address)  # each is a line in the log
            self._bad_tokens.add(request.peer.address)
            raise self._refused(
                "join: no node name",
                node,
                400,
                "header NodeName is not a node's name: lower-case letters, digits, '-' and '.'",
            )
        if ca is None:
            raise HttpError(503, "this cloud core has no CA key, so it signs nothing")
        if not self._revocations.known:
            raise HttpError(503, "the list of revocations is not read yet", (("Retry-After", "5"),))
        by = self._authenticate(request, node)
        try:
            usages = parse_usages(request.headers.get("extkeyusages", ""))
            certificate = sign_request(
                ca,
                request.body,
                node,
                days=self._settings.days,
                usages=usages,
                strict=self._settings.strict,
                reserved=names_of(self._credentials.server),
            )
        except RequestRefused as error:
            # Upstream answers 500 for whatever cannot be signed, and its edge core looks for 200 only.
            raise self._refused("join: request", node, 500, f"not signed: {error}") from None
        self._issued.add(by)
        logger.info("node %s: certificate issued to %s, with its %s", node, request.peer.address, by)
        return Response(200, certificate, "application/octet-stream")

    def _authenticate(self, request: Request, node: str) -> str:
        """What the node proved itself with.

        Raises:
            HttpError: 401 it did not, or is revoked; 429 too many bad tokens of its address.
        """
        certificate, deny = tls.peer_certificate(request.peer.tls), self._revocations.current
        if certificate:
            if reason := identity_refusal(node, certificate, strict=self._settings.strict):
                # Under its own name: of others it can call itself by any number, and each would be a line in the log.
                raise self._refused("join: certificate", tls.node_of(certificate), 401, reason)
            if reason := deny.refusal(node, certificate):
                raise self._refused("join: revoked", node, 401, reason)
            return "certificate"
        address = request.peer.address
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip()
        try:
            if scheme.lower() != "bearer" or not bearer:
                raise BadToken("there is neither a client certificate nor a bearer token")
            verify_bearer(bearer, self._credentials.ca_key_der or b"")
            whole = f"{hashlib.sha256(self._credentials.ca_der).hexdigest()}.{bearer}"
            if hashlib.sha256(whole.encode()).hexdigest() in deny.tokens:
                raise BadToken("the token is revoked")
        except BadToken as error:
            # Only now: behind a balancer good tokens come from the address of the bad ones, and nobody guesses an HMAC.
            _wait(self._bad_tokens, address)
            self._bad_tokens.add(address)
            raise self._refused("join: token", node, 401, str(error)) from None
        if reason := deny.refusal(node, None):
            raise self._refused("join: revoked", node, 401, reason)
        return "token"

    def _refused(self, what: str, node: str, status: int, reason: str) -> HttpError:
        self._audit.refused(what, node=node, resource="/edge.crt", operation="GET", detail=reason)
        return HttpError(status, reason)


def _wait(attempts: Attempts, address: str) -> None:
    if wait_s := attempts.wait_s(address):
        raise HttpError(429, f"too many of these from {address}", (("Retry-After", str(wait_s)),))


def _text(text: str, status: int = 200) -> Response:
    return Response(status, text.encode(), "text/plain; charset=utf-8")
