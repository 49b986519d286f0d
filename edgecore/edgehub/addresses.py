"""Which of several addresses of the cloud is dialled next."""

from __future__ import annotations

from dmi import ConfigError

__all__ = ["Addresses"]


class Addresses:
    """In turn, and the one that worked last first. One that lets us in and throws us out again has not worked.

    `server`: `edgeHub.websocket.server`, one or several `host:port` with commas between.

    Raises:
        ConfigError: It names none.
    """

    def __init__(self, server: str) -> None:
        hosts = dict.fromkeys(host for part in server.split(",") if (host := part.strip()))
        if not hosts:
            raise ConfigError("edgeHub.websocket.server", "names no address; host:port is needed")
        self._urls = tuple(f"wss://{host}" for host in hosts)
        self._at = 0
        self._tried = 0
        """In this round, without one that worked."""

    def __str__(self) -> str:
        return ", ".join(self._urls)

    @property
    def current(self) -> str:
        return self._urls[self._at]

    @property
    def left(self) -> tuple[str, ...]:
        """Those to be tried before the next pause, the current one first."""
        return tuple(self._urls[(self._at + step) % len(self._urls)] for step in range(len(self._urls) - self._tried))

    def skip_to(self, url: str) -> None:
        """The current one is now `url`, one of `left`; those before it have been tried."""
        while self.current != url:
            self.failed()

    def worked(self) -> None:
        """It is the first of the next round."""
        self._tried = 0

    def failed(self) -> bool:
        """On to the next one. True: all of them have been tried, so it is time for a pause."""
        self._at = (self._at + 1) % len(self._urls)
        self._tried = (self._tried + 1) % len(self._urls)
        return self._tried == 0
