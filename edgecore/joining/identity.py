"""What the certificate of this node says, and whether the cloud will take it; with nothing but `ssl`."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cloudedge.tls import NODE_PREFIX, client_context, common_name

__all__ = ["Identity", "NoIdentity", "NodeFiles", "loadable", "read_identity"]

# Numbers of OpenSSL's x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10


class NodeFiles(Struct, frozen=True):
    """`edgeHub.tlsCaFile`, `tlsCertFile`, `tlsPrivateKeyFile`."""

    ca: str
    certificate: str
    key: str

    def __str__(self) -> str:
        return f"{self.certificate} and {self.key}"


class Identity(Struct, frozen=True):
    """A certificate that works. Times are epoch seconds."""

    serial: str
    not_before: float
    not_after: float


class NoIdentity(Exception):
    """There is no certificate that the cloud would take; the text says what is wrong. `early`: its time is still to
    come, by this machine's clock, which may be the one that is wrong.
    """

    def __init__(self, problem: str, *, early: bool = False) -> None:
        super().__init__(problem)
        self.early = early


def loadable(files: NodeFiles) -> bool:
    """Whether a connection can be tried with them."""
    with contextlib.suppress(OSError, ValueError):  # ssl.SSLError is an OSError
        client_context(ca_file=Path(files.ca), cert_file=Path(files.certificate), key_file=Path(files.key))
        return True
    return False


def read_identity(files: NodeFiles, node: str) -> Identity:
    """Judge the files as the cloud will: a TLS handshake with ourselves, in memory, in which our side is the client.

    Raises:
        NoIdentity: They cannot be read, do not belong together, are of another node or CA, or their time is over.
    """
    try:
        peer = _own_certificate(files)
    except ssl.SSLCertVerificationError as error:
        early = error.verify_code == _NOT_YET_VALID
        raise NoIdentity(f"{files.certificate}: {_problem(error, files)}", early=early) from error
    except ssl.SSLError as error:
        raise NoIdentity(f"{files}: {error.reason or error}") from error
    except OSError as error:
        raise NoIdentity(f"{_missing(files)}: {error.strerror or error}") from error
    if (name := common_name(peer)) != NODE_PREFIX + node:
        raise NoIdentity(f"{files.certificate} is of {name!r}, not of {NODE_PREFIX + node!r}")
    return Identity(
        serial=str(peer["serialNumber"]),
        not_before=ssl.cert_time_to_seconds(peer["notBefore"]),
        not_after=ssl.cert_time_to_seconds(peer["notAfter"]),
    )


def _own_certificate(files: NodeFiles) -> Mapping[str, Any]:
    """What the other side of a handshake sees of us."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(files.ca)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_mode = ssl.CERT_NONE  # the other side is ourselves
    for context in (server_context, client_side):
        context.load_cert_chain(files.certificate, files.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(up, down, server_side=True)
    client = client_side.wrap_bio(down, up)
    for _ in range(4):  # two turns are enough for TLS 1.3, three for 1.2
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return server.getpeercert() or {}


def _problem(error: ssl.SSLCertVerificationError, files: NodeFiles) -> str:
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    match error.verify_code:
        case code if code == _EXPIRED:
            return f"the certificate has expired (by this machine's clock it is {now} UTC)"
        case code if code == _NOT_YET_VALID:
            return f"the certificate is not valid yet: by this machine's clock it is {now} UTC"
    return f"{error.verify_message} (CA: {files.ca})"


def _missing(files: NodeFiles) -> str:
    """The first of the files that cannot be opened; `ssl` does not say which."""
    for file in (files.certificate, files.key, files.ca):
        try:
            Path(file).open("rb").close()
        except OSError:
            return file
    return str(files)
