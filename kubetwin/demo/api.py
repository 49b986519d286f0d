"""The demo's view of the Kubernetes API: devices, models and statuses, read as any client would with the kubeconfig."""

from __future__ import annotations

import base64
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

__all__ = ["ApiReader", "ApiUnavailable"]

_GROUP: Final = "apis/devices.kubeedge.io/v1beta1"
_TIMEOUT_S: Final = 3.0


class ApiUnavailable(Exception):
    """The API server did not answer."""


class ApiReader:
    """Lists objects. Blocking: call it in a thread."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._token = user["token"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)

    def list(self, plural: str) -> list[dict[str, Any]]:
        """All objects of one kind of `devices.kubeedge.io`, all namespaces.

        Raises:
            ApiUnavailable: No answer, or an error.
        """
        request = urllib.request.Request(  # noqa: S310 - the address is our own kubeconfig's
            f"{self._server}/{_GROUP}/{plural}", headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls) as response:  # noqa: S310
                items: list[dict[str, Any]] = msgspec.json.decode(response.read())["items"]
                return items
        except (OSError, urllib.error.URLError, msgspec.DecodeError, KeyError) as error:
            raise ApiUnavailable(str(error)) from error
