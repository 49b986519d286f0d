"""Sees to it that this node has a certificate: joins where it has none, and renews it before its time is over.

Nothing here gives up, and nothing ends the process: the cloud may be away for long, and an operator may bring a new
token or new files at any time. Both are noticed within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from dmi.metrics import Metrics
from edgecore.bus import Bus, CertificateRenewed, CloudLink
from edgecore.config import EdgeHubConfig
from edgecore.joining.identity import Identity, NodeFiles, NoIdentity, loadable, read_identity
from edgecore.joining.job import Job, bootstrap_files
from edgecore.joining.pair import clear_up, finish_install
from edgecore.joining.worker import run_job

__all__ = ["Joining", "renewal_due", "renewal_pauses"]

logger = logging.getLogger(__name__)

LOOK_S: Final = 60.0
"""How often the files are looked at while all is well: the clock may jump, and files may be replaced by hand."""
LOOK_BROKEN_S: Final = 2.0
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
FINAL_PAUSE_S: Final = 300.0
"""After a refusal that trying again will not change; a new token or configuration file is tried at once."""
RENEW_PAUSES_S: Final = (2.0, 4.0, 8.0, 16.0)
RENEW_LATER_S: Final = 32.0


class Joining:
    def __init__(
        self,
        config: EdgeHubConfig,
        *,
        node: str,
        bus: Bus,
        config_file: Path | None = None,
        identity: Identity | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`config_file`: where the token is, and taken out once it was used; None: it is in `config`, if anywhere.
        `identity`: what the files held a moment ago, so that this process need not look: that costs 0.3 MB.
        """
        self._config = config
        self._node = node
        self._bus = bus
        self._config_file = config_file
        self._files = NodeFiles(config.tls_ca_file, config.tls_cert_file, config.tls_private_key_file)
        self._identity = identity
        self._seen = self._files_stamp() if identity is not None else ()
        """The files that `_identity` is of."""
        self._serial = identity.serial if identity is not None else ""
        """Of the last certificate that worked, which is the one that connections have."""
        self._tried: tuple[object, ...] = ()
        self._pauses = _pauses()
        self._next_try = 0.0
        self.usable = asyncio.Event()
        """Set once there is a certificate to dial with."""
        self.trouble = ""
        """Why there is no certificate, or none soon, and what to do."""
        metrics = metrics or Metrics()
        self._asked = metrics.counter(
            "kubetwin_edgecore_certificate_requests_total", "Certificates asked for.", "what", "result"
        )
        metrics.gauge(
            "kubetwin_edgecore_certificate_expiry_seconds",
            "When the node's certificate expires, epoch seconds.",
            read=lambda: {(): self._identity.not_after} if self._identity else {},
        )

    def link(self, link: CloudLink) -> CloudLink:
        """What is shown of the channel: while it is down for want of a certificate, that is the trouble."""
        if link.connected or not self.trouble:
            return link
        return CloudLink(link.url, connected=False, since_ms=link.since_ms, trouble=self.trouble)

    async def run(self) -> None:
        """Until cancelled."""
        self._finish_install()
        with contextlib.suppress(OSError):
            clear_up(self._files)
        while True:
            try:
                await self._look()
            except OSError as error:
                self._note(f"no process to ask for a certificate can be started: {error}")
                await asyncio.sleep(RENEW_LATER_S)
            await asyncio.sleep(LOOK_BROKEN_S if self._identity is None else self._until_next_look(self._identity))

    def _until_next_look(self, identity: Identity) -> float:
        wait = renewal_due(identity) - time.time() if self._config.rotate_certificates else LOOK_S
        return max(0.05, min(LOOK_S, wait))

    def _finish_install(self) -> None:
        """What a child that was killed, or had no room on the disk, has left to do; none runs now."""
        try:
            if finish_install(self._files):
                logger.info("put in place: %s, which were received before", self._files)
        except OSError as error:
            self._note(f"{error.filename}: {error.strerror}")

    async def _look(self) -> None:
        """Act on what the files are now."""
        self._finish_install()
        before = self._identity
        if before is not None and self._seen == self._files_stamp() and time.time() < before.not_after:
            self.usable.set()
            await self._renew_if_due(before)
            return
        self._seen = self._files_stamp()
        if loadable(self._files):
            self.usable.set()  # even one that seems expired: whether the clock is right, the cloud will say
        try:
            self._identity = read_identity(self._files, self._node)
        except NoIdentity as error:
            self._identity = None
            if error.early and self.usable.is_set():
                self._note(str(error))  # asking for another would give the same
            else:
                await self._join(str(error))
            return
        told, self._serial = self._serial, self._identity.serial
        if told not in ("", self._serial):
            logger.info("%s have been replaced: connecting with them", self._files)
            await self._bus.publish(CertificateRenewed())
        await self._renew_if_due(self._identity)

    async def _renew_if_due(self, identity: Identity) -> None:
        if self._config.rotate_certificates and time.time() >= renewal_due(identity):
            await self._renew(identity)
        else:
            self.trouble = ""

    async def _join(self, why: str) -> None:
        """One try, if it is time for one."""
        now = asyncio.get_running_loop().time()
        if now < self._next_try and self._tried == self._sources():
            return
        self._tried = self._sources()
        logger.debug("joining: %s", why)
        outcome = await run_job(self._job("join"))
        self._count("join", outcome.problem)
        if not outcome.problem:
            self._pauses = _pauses()
            self._next_try = 0.0
            logger.info("node %s has joined: %s", self._node, self._files)
            if outcome.remark:
                logger.warning("%s", outcome.remark)
            await self._take_new()
            return
        pause = FINAL_PAUSE_S if outcome.final else next(self._pauses)
        self._next_try = asyncio.get_running_loop().time() + pause
        self._note(f"{why}; cannot join: {outcome.problem}", final=outcome.final)

    async def _renew(self, identity: Identity) -> None:
        """Try until it works, or until somebody else has replaced the files or their time is over."""
        for pause in renewal_pauses():
            outcome = await run_job(self._job("renew"))
            self._count("renew", outcome.problem)
            if not outcome.problem:
                logger.info("certificate of node %s renewed: %s", self._node, self._files)
                await self._take_new()
                if self._identity is not None and time.time() >= renewal_due(self._identity):
                    self._note("the new certificate is to be renewed at once; are the clocks here and there right?")
                    await asyncio.sleep(RENEW_LATER_S)
                return
            ends = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(identity.not_after))
            self._note(f"the certificate, which ends at {ends}, cannot be renewed: {outcome.problem}")
            await asyncio.sleep(pause)
            try:
                if read_identity(self._files, self._node) != identity:
                    return
            except NoIdentity:
                return

    async def _take_new(self) -> None:
        self._seen = self._files_stamp()
        try:
            self._identity = read_identity(self._files, self._node)
        except NoIdentity as error:
            self._note(str(error))
            self._identity = None
        else:
            self.trouble, self._serial = "", self._identity.serial
        self.usable.set()
        await self._bus.publish(CertificateRenewed())

    def _job(self, what: Literal["join", "renew"]) -> Job:
        return Job(
            what=what,
            node=self._node,
            servers=self._config.http_server,
            files=self._files,
            config_file=str(self._config_file or ""),
            token=self._config.token,
        )

    def _sources(self) -> tuple[object, ...]:
        """Changes when an operator brings a token."""
        if self._config_file is None:
            return ()
        return tuple(_stamp(path) for path in (self._config_file, *bootstrap_files(self._config_file)))

    def _files_stamp(self) -> tuple[object, ...]:
        return tuple(_stamp(Path(file)) for file in (self._files.ca, self._files.certificate, self._files.key))

    def _count(self, what: str, problem: str) -> None:
        self._asked.add(what, "failed" if problem else "done")

    def _note(self, trouble: str, *, final: bool = False) -> None:
        """Log on the change, not at every try."""
        if trouble != self.trouble:
            logger.log(logging.ERROR if final else logging.WARNING, "%s; trying again until it works", trouble)
        self.trouble = trouble


def renewal_due(identity: Identity) -> float:
    """Epoch seconds: after 70 to 90 % of its time, the same for one certificate whenever it is asked."""
    part = random.Random(identity.serial).uniform(0.7, 0.9)  # noqa: S311 - to spread nodes, no secret
    return identity.not_before + (identity.not_after - identity.not_before) * part


def renewal_pauses() -> Iterator[float]:
    """Seconds to wait after each failure (channel contract 3.6)."""
    for pause in RENEW_PAUSES_S:
        yield pause * random.uniform(1.0, 1.1)  # noqa: S311 - no secret
    while True:
        yield RENEW_LATER_S


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield random.uniform(pause / 2, pause)  # noqa: S311 - no secret
        pause = min(pause * 2, MAX_PAUSE_S)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
