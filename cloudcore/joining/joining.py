"""All of joining in one: what `app` opens first, asks for the hub's TLS and admission, and runs beside the hub."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from msgspec import Struct

from cloudcore.audit import Audit
from cloudcore.joining.admission import NodeAdmission
from cloudcore.joining.credentials import CredentialFiles, Credentials
from cloudcore.joining.revocations import Revocations
from cloudcore.joining.service import JoinService, JoinSettings
from cloudcore.joining.tokens import TokenKeeper
from cloudcore.kube import KubeClient
from dmi import ConfigError
from dmi.metrics import Metrics

__all__ = ["Joining", "JoiningSettings"]


class JoiningSettings(Struct, frozen=True):
    files: CredentialFiles
    names: tuple[str, ...]
    """What nodes dial: IP addresses and DNS names."""
    https: JoinSettings | None
    """None: no HTTPS service; certificates are given out by another replica, or by hand."""
    token_refresh_s: float = 12 * 3600.0
    strict: bool = True
    revoked: str = "kubetwin-revoked"
    """The ConfigMap of revocations."""


class Joining:
    """`open` it, then `run` it in a task."""

    def __init__(
        self,
        client: KubeClient,
        settings: JoiningSettings,
        *,
        audit: Audit | None = None,
        metrics: Metrics | None = None,
        unready: Callable[[], str] = lambda: "",
    ) -> None:
        """`unready`: why nodes are not to be sent to this replica now; empty: they may. For `/readyz`."""
        self.changed: Callable[[], None] = lambda: None
        """Called when who is revoked has changed: for the hub to look at those who are in."""
        self._unready = unready
        self.credentials = Credentials(client, settings.files, settings.names, metrics=metrics)
        self.revocations = Revocations(client, settings.revoked, changed=self._revocations_changed, metrics=metrics)
        self.admission = NodeAdmission(self.revocations, strict=settings.strict)
        self._tokens = TokenKeeper(client, self.credentials, refresh_s=settings.token_refresh_s)
        self.service = (
            JoinService(
                settings.https,
                client=client,
                credentials=self.credentials,
                revocations=self.revocations,
                audit=audit or Audit(),
                unready=self.unready,
                metrics=metrics,
            )
            if settings.https is not None
            else None
        )

    async def open(self) -> None:
        """Have the credentials, and listen; waits for the API server unless files have it all.

        Raises:
            ConfigError: A file or Secret cannot be used, or the address cannot be listened on.
        """
        await self.credentials.open()
        if self.service is not None:
            try:
                self.service.listen()
            except OSError as error:
                raise ConfigError(
                    "modules.cloudHub.https", f"cannot listen on {self.service.address}: {error}"
                ) from error

    def hub_context(self) -> ssl.SSLContext:
        """For CloudHub: a client certificate is required. It keeps up with the server certificate."""
        return self.credentials.context(certificate_required=True)

    def unready(self) -> str:
        if not self.revocations.known:
            return "the API server has not said yet who is revoked"
        return self._unready()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.revocations.run(), name="revocations")
            group.create_task(self.credentials.run(), name="credentials")
            group.create_task(self._tokens.run(), name="join token")
            if self.service is not None:
                group.create_task(self.service.run(), name="join service")

    def _revocations_changed(self) -> None:
        self.changed()
