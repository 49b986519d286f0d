"""Who may use the HTTP API: what a config opens, which clients are refused, and the TLS settings.

On a loopback address everyone on the machine may. What must not is a web page in a browser there: it is refused by the
`Host` it was fetched from (DNS rebinding) and, for writes, by the marks a browser puts on a request from elsewhere.
On any other address a client needs the token or a certificate, or nothing is served at all.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dmi.errors import ConfigError
from dmi.web.http import HttpError, Request
from mappers.sdk.config import HttpConfig

__all__ = ["Access", "FileStamp", "TlsFiles", "host_name", "is_loopback", "stamp"]

logger = logging.getLogger(__name__)

MIN_TOKEN: Final = 16
"""Characters. A shorter one could be guessed over the network."""

FileStamp = tuple[tuple[int, int, int] | None, ...]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it. A name other than `localhost` may be anything."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def host_name(authority: str) -> str:
    """`Host` header → the host alone, lower case; empty if it is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def stamp(files: Iterable[str]) -> FileStamp:
    """Changes when one of the files does. A mounted secret is replaced, so the inode counts too."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = Path(file).stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


class Access:
    """Lets requests in, or raises the `HttpError` that says why not."""

    def __init__(self, address: str, http: HttpConfig) -> None:
        """
        Raises:
            ConfigError: The API would be open to strangers, or the token cannot be used.
        """
        self._address = address
        self._local = is_loopback(address)
        self._token_file = http.token_file
        self._token: bytes | None = None
        self._seen: FileStamp = ()
        if not (self._local or http.token_file or http.client_ca_file):
            raise ConfigError(
                "common.address",
                f"{address!r} can be reached from other machines, so the HTTP API needs a token (http.token_file) or "
                "client certificates (http.client_ca_file); or set common.address to 127.0.0.1, or http.enabled to "
                "false",
            )
        if http.token_file:
            self._seen = stamp([http.token_file])
            self._token = _read_token(http.token_file)
            if not self._local and not http.cert_file:
                logger.warning("HTTP API: the token is sent in the clear; set http.cert_file and http.key_file")

    def check(self, request: Request, *, writes: bool, public: bool) -> None:
        """
        Raises:
            HttpError: 401 without the token, 403 for what a web page elsewhere may have sent.
        """
        if self._local and request.host and not self._is_own(host_name(request.host)):
            raise HttpError(403, "the Host header names another host; use 127.0.0.1 or localhost")
        if writes:
            self._check_origin(request)
        if not public:
            self._check_token(request)

    def _is_own(self, host: str) -> bool:
        return is_loopback(host) or host == self._address.lower()

    def _check_origin(self, request: Request) -> None:
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin"):
            raise HttpError(403, "a write from a web page elsewhere is refused (Sec-Fetch-Site)")
        for header in ("origin", "referer"):
            origin = request.headers.get(header)
            if origin is not None and (_authority(origin) or "?") != request.host.lower():
                raise HttpError(403, f"a write from a web page elsewhere is refused ({header.title()})")

    def _check_token(self, request: Request) -> None:
        if not self._token_file:
            return
        import hmac  # with OpenSSL's digests 0.7 MB, which only those with a token need

        self._refresh()
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1")
        if self._token is None or scheme.lower() != "bearer" or not hmac.compare_digest(sent, self._token):
            raise HttpError(
                401, "the token is missing or wrong: Authorization: Bearer …", (("WWW-Authenticate", "Bearer"),)
            )

    def _refresh(self) -> None:
        """Take over a changed token. One that cannot be read lets nobody in: removing the file is revoking it."""
        if (now := stamp([self._token_file])) == self._seen:
            return
        self._seen = now
        try:
            self._token = _read_token(self._token_file)
        except ConfigError as error:
            self._token = None
            logger.error("HTTP API: nobody is let in: %s", error)
        else:
            logger.info("HTTP API: the token changed")


def _authority(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _read_token(file: str) -> bytes:
    try:
        token = Path(file).read_bytes().strip()
    except OSError as error:
        raise ConfigError("http.token_file", f"cannot be read: {error}") from error
    if len(token) < MIN_TOKEN:
        raise ConfigError("http.token_file", f"{file}: the token is shorter than {MIN_TOKEN} characters")
    return token


class TlsFiles:
    """Certificate, key and client CA; taken over anew when the files change, as when they are renewed."""

    def __init__(self, http: HttpConfig) -> None:
        """
        Raises:
            ConfigError: One of the files is missing or unusable. Half a setting is never plain HTTP.
        """
        self._http = http
        for key, value, other in (
            ("http.cert_file", http.cert_file, "http.key_file"),
            ("http.key_file", http.key_file, "http.cert_file"),
        ):
            if not value and (http.cert_file or http.key_file or http.client_ca_file):
                given = other if http.cert_file or http.key_file else "http.client_ca_file"
                raise ConfigError(key, f"is missing, and {given} is set")
        self._files = [f for f in (http.cert_file, http.key_file, http.client_ca_file) if f]
        self._seen = stamp(self._files)
        self._context = self._load() if self._files else None

    def context(self) -> ssl.SSLContext | None:
        """For the next connection; None: plain HTTP. Files that no longer fit leave what was there in use."""
        if self._files and (now := stamp(self._files)) != self._seen:
            self._seen = now
            try:
                self._context = self._load()
                logger.info("HTTP API: the certificate changed")
            except ConfigError as error:
                logger.error("HTTP API: the certificate in use stays: %s", error)
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            # A password, or else an encrypted key would have OpenSSL ask for one on the terminal.
            context.load_cert_chain(self._http.cert_file, self._http.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                "http.cert_file", f"{self._http.cert_file} with {self._http.key_file} cannot be used: {error}"
            ) from error
        if self._http.client_ca_file:
            try:
                context.load_verify_locations(self._http.client_ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    "http.client_ca_file", f"{self._http.client_ca_file} cannot be used: {error}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context
