"""The join token: `<hex SHA-256 of the CA, DER>.<JWT>` (channel contract 3.4).

The first part tells a node which CA to trust, the rest tells the cloud that somebody gave the node the token. It is
HMAC-signed with the CA's private key (DER) and says when it ends, nothing else: it is good for any node.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time
from typing import Final

from cloudedge.errors import ChannelError

__all__ = ["BadToken", "bearer_of", "check_ca", "expiry", "mint_token", "verify_bearer"]

MAX_CHARS: Final = 4096
_ALGORITHMS: Final = ["HS256", "HS384", "HS512"]


class BadToken(ChannelError):
    """A token that does not open anything, and why."""


def mint_token(ca: bytes, ca_key: bytes, *, expires_at: float) -> str:
    """`ca` and `ca_key` in DER; `expires_at`: seconds since the epoch."""
    import jwt  # only the cloud mints; a node has no need of the library

    return f"{hashlib.sha256(ca).hexdigest()}.{jwt.encode({'exp': int(expires_at)}, ca_key, algorithm='HS256')}"


def bearer_of(token: str) -> str:
    """What goes into `Authorization: Bearer`: all but the CA's hash.

    Raises:
        BadToken: It does not have four parts.
    """
    parts = token.strip().split(".")
    if len(token) > MAX_CHARS or len(parts) != 4 or not all(parts):
        raise BadToken("the token does not have the four parts of <CA hash>.<header>.<claims>.<signature>")
    return ".".join(parts[1:])


def check_ca(token: str, ca: bytes) -> None:
    """Whether the CA (DER) that a server handed out is the one the token is about.

    Raises:
        BadToken: It is another one, or the token is none.
    """
    bearer_of(token)
    expected = token.strip().partition(".")[0].lower()
    if not hmac.compare_digest(expected.encode(errors="replace"), hashlib.sha256(ca).hexdigest().encode()):
        raise BadToken("the server's CA is not the one the token was made for: another cloud, or somebody in between")


def verify_bearer(bearer: str, ca_key: bytes, *, now: float | None = None) -> float:
    """When a bearer (`bearer_of`) ends, in seconds since the epoch, if it is signed with the key and has not ended yet.

    Raises:
        BadToken: It is not signed so, has ended, or says no end.
    """
    import jwt

    if len(bearer) > MAX_CHARS:
        raise BadToken("the token is too long")
    try:
        # Its time is looked at below: the library only knows the time of this machine.
        options = {"require": ["exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        claims = jwt.decode(bearer, ca_key, algorithms=_ALGORITHMS, options=options)  # type: ignore[arg-type]
    except jwt.InvalidSignatureError:
        raise BadToken("the token is not signed by this cloud's CA") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise BadToken(f"not a join token: {error}") from None
    signature = bearer.rpartition(".")[2]
    decoded = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != signature:
        # Its signature is good, written otherwise: its hash is not that of the token that may be revoked.
        raise BadToken("not a join token: it was changed")
    end = claims["exp"]
    if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
        raise BadToken("not a join token: exp is not a number")
    if end <= (time.time() if now is None else now):
        raise BadToken("the token has expired: take the present one (`kubetwin token`)")
    return float(end)


def expiry(token: str, ca: bytes, ca_key: bytes, *, now: float | None = None) -> float:
    """When a whole token ends, if it is of this CA and good.

    Raises:
        BadToken: It is not.
    """
    check_ca(token, ca)
    return verify_bearer(bearer_of(token), ca_key, now=now)
