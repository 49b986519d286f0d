"""Tokens of service accounts, as the `token` subresource gives them: JWTs with the claims of Kubernetes.

Signed with a key of this process (HS256), which nothing here asks for: they show their bearer what a real one would.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import secrets
from typing import Any

from kubetwin.apiserver import errors
from kubetwin.apiserver.items import Item, JsonObject, encode

__all__ = ["Tokens"]

ISSUER = "https://kubernetes.default.svc.cluster.local"
DEFAULT_S, SHORTEST_S = 3600, 600  # as kube-apiserver


class Tokens:
    """Makes tokens; those of another run are worth nothing."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def request(self, account: Item, body: Any) -> JsonObject:
        """The answer to a TokenRequest.

        Raises:
            ApiError: 400 when the body is none, 422 when it asks for a token too short-lived.
        """
        spec = body.get("spec") if isinstance(body, dict) else None
        if not isinstance(spec, dict) or body.get("kind") != "TokenRequest":
            raise errors.bad_request("the body of the request must be a TokenRequest with a spec")
        lifetime_s = spec.get("expirationSeconds", DEFAULT_S)
        if not isinstance(lifetime_s, int) or not SHORTEST_S <= lifetime_s <= 2**32:
            problem = ("spec.expirationSeconds", "FieldValueInvalid", "Invalid value: may not be less than 10 minutes")
            raise errors.invalid("authentication.k8s.io", "TokenRequest", account.name, [problem])
        audiences = spec.get("audiences") or [ISSUER]
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        expires = now + datetime.timedelta(seconds=lifetime_s)
        about: JsonObject = {
            "namespace": account.namespace,
            "serviceaccount": {"name": account.name, "uid": account.uid},
        }
        bound = spec.get("boundObjectRef")
        if isinstance(bound, dict):
            about[str(bound.get("kind", "")).lower()] = {"name": bound.get("name"), "uid": bound.get("uid")}
        claims = {
            "aud": audiences,
            "exp": int(expires.timestamp()),
            "iat": int(now.timestamp()),
            "iss": ISSUER,
            "kubernetes.io": about,
            "nbf": int(now.timestamp()),
            "sub": f"system:serviceaccount:{account.namespace}:{account.name}",
        }
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": account.name,
                "namespace": account.namespace,
                "creationTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "spec": {**spec, "audiences": audiences, "expirationSeconds": lifetime_s},
            "status": {"token": self._sign(claims), "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ")},
        }

    def _sign(self, claims: JsonObject) -> str:
        head = f"{_text(encode({'alg': 'HS256', 'typ': 'JWT'}))}.{_text(encode(claims))}"
        return f"{head}.{_text(hmac.digest(self._key, head.encode(), hashlib.sha256))}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
