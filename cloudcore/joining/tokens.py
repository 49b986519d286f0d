"""Keeps a good join token in Secret `tokensecret`, where `kubetwin token` and `keadm gettoken` read it.

A token is replaced in the second half of its time, so any that is handed out is good for a while, and any number of
replicas can do this side by side: who comes second finds a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from cloudcore.joining import secrets
from cloudcore.joining.credentials import Credentials
from cloudcore.kube import AlreadyExists, Conflict, KubeClient, KubeError
from cloudedge.token import BadToken, expiry, mint_token

__all__ = ["TokenKeeper"]

logger = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 60.0
LOOK_S: Final = 300.0
"""At most, until the Secret is looked at again: somebody may have deleted it to have another one."""


class TokenKeeper:
    def __init__(
        self,
        client: KubeClient,
        credentials: Credentials,
        *,
        refresh_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A token lasts twice `refresh_s`."""
        self._client = client
        self._credentials = credentials
        self._refresh_s = refresh_s
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled; what fails is tried again (upstream stops at the first failure, channel contract 8.3 #9)."""
        delay_s, said = RETRY_FIRST_S, ""
        while True:
            try:
                left_s = await self.refresh()
            except (Conflict, AlreadyExists):  # another replica was quicker: see what it wrote
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, not a secret
            except KubeError as error:
                if said != str(error):
                    said = str(error)
                    logger.warning("the join token cannot be renewed: %s; trying on", error)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_CAP_S, delay_s * 2)
            else:
                delay_s, said = RETRY_FIRST_S, ""
                await asyncio.sleep(max(1.0, min(left_s, LOOK_S)))

    async def refresh(self) -> float:
        """Once; returns in how many seconds the token that is there now is to be replaced.

        Raises:
            KubeError: It could not be read or written.
        """
        ca, key = self._credentials.ca_der, self._credentials.ca_key_der
        if key is None:  # somebody else's to do
            return LOOK_S
        now = self._clock()
        secret = await secrets.find(self._client, secrets.TOKEN)
        if secret is not None:
            try:
                end = expiry(secrets.read_token(secret), ca, key, now=now)
                if end - now > self._refresh_s:
                    return end - now - self._refresh_s
            except BadToken as error:
                logger.info("Secret %s/%s: %s; making another one", secrets.NAMESPACE, secrets.TOKEN, error)
        data = secrets.token_data(mint_token(ca, key, expires_at=now + 2 * self._refresh_s))
        if secret is None:
            await secrets.create(self._client, secrets.TOKEN, data)
        else:
            await secrets.replace(self._client, secret, data)
        logger.info("made a join token, good for %g h", 2 * self._refresh_s / 3600)
        return self._refresh_s
