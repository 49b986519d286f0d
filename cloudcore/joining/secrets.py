"""The three Secrets in which a cluster keeps its CA, the cloud's certificate and the join token.

Names, keys and DER are upstream's (channel contract 3.1), so that its replicas and tools find what ours wrote, and the
other way round.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import Final

from cloudcore.kube import AlreadyExists, Key, Kind, KubeClient, NotFound, Object
from cloudedge.certificates import Issued, der, from_der

__all__ = [
    "CA",
    "NAMESPACE",
    "SECRETS",
    "SERVER",
    "TOKEN",
    "PairSecret",
    "create",
    "find",
    "read_pair",
    "read_token",
    "replace",
    "token_data",
]

NAMESPACE: Final = "kubeedge"
SECRETS: Final = Kind(group="", version="v1", plural="secrets", kind="Secret")
_NAMESPACES: Final = Kind(group="", version="v1", plural="namespaces", kind="Namespace")
TOKEN: Final = "tokensecret"  # noqa: S105 - a name
_TOKEN_DATA: Final = "tokendata"  # noqa: S105 - a name


class PairSecret:
    """One that holds a certificate and its key."""

    def __init__(self, name: str, certificate: str, key: str) -> None:
        self.name = name
        self._certificate = certificate
        self._key = key

    def data(self, pair: Issued) -> dict[str, bytes]:
        certificate, key = der(pair)
        return {self._certificate: certificate, self._key: key}

    def pair(self, secret: Object) -> Issued:
        """What `data` made.

        Raises:
            ValueError: It is not there, or is no certificate and its key; the text names the Secret.
        """
        try:
            return from_der(_value(secret, self._certificate), _value(secret, self._key))
        except ValueError as error:
            raise ValueError(f"Secret {NAMESPACE}/{self.name}: {error}") from error


CA: Final = PairSecret("casecret", "cadata", "cakeydata")
SERVER: Final = PairSecret("cloudcoresecret", "cloudcoredata", "cloudcorekeydata")


async def find(client: KubeClient, name: str) -> Object | None:
    """A Secret as it is; None: there is none."""
    try:
        return await client.get(SECRETS, Key(NAMESPACE, name))
    except NotFound:
        return None


async def create(client: KubeClient, name: str, data: dict[str, bytes]) -> None:
    """Make a Secret, and the namespace where that is missing.

    Raises:
        AlreadyExists: Somebody else has made it.
    """
    secret = _secret(name, data)
    try:
        await client.create(SECRETS, secret)
    except NotFound:  # no namespace
        with contextlib.suppress(AlreadyExists):
            await client.create(_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        await client.create(SECRETS, secret)


async def replace(client: KubeClient, old: Object, data: dict[str, bytes]) -> None:
    """Change a Secret that was read before; what else is in it stays.

    Raises:
        Conflict: It was changed since.
    """
    encoded = _secret("", data)["data"]
    key = Key(NAMESPACE, old["metadata"]["name"])
    await client.replace(SECRETS, key, {**old, "data": {**(old.get("data") or {}), **encoded}})


async def read_pair(client: KubeClient, kind: PairSecret) -> Issued | None:
    """The pair that the cluster has.

    Raises:
        ValueError: The Secret does not hold one.
    """
    secret = await find(client, kind.name)
    return None if secret is None else kind.pair(secret)


def read_token(secret: Object) -> str:
    """The join token of Secret `TOKEN`; empty: it holds none that can be read."""
    try:
        return _value(secret, _TOKEN_DATA).decode("ascii").strip()
    except ValueError:
        return ""


def token_data(token: str) -> dict[str, bytes]:
    return {_TOKEN_DATA: token.encode()}


def _secret(name: str, data: dict[str, bytes]) -> Object:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    about = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "type": "Opaque", "data": encoded}


def _value(secret: Object, key: str) -> bytes:
    """Raises: ValueError: There is no such key, or it is no base64."""
    value = (secret.get("data") or {}).get(key)
    if not isinstance(value, str):
        raise ValueError(f"it has no {key}")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{key} is not base64: {error}") from error
