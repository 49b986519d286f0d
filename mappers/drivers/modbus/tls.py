"""Modbus/TCP Security: TLS with certificates on both sides (MODBUS/TCP Security V2.1, 8)."""

from __future__ import annotations

import ssl

from mappers.drivers.modbus.settings import ModbusConfig
from mappers.sdk import ConfigError

__all__ = ["client_context"]


def client_context(config: ModbusConfig) -> ssl.SSLContext:
    """Trust `caFile` or the system's CAs, check the name, show `certFile`; TLS 1.2 or later. Read anew each time, so
    that renewed files count from the next connect.

    Raises:
        ConfigError: A file is missing or of no use; `path` is the key.
    """
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError("caFile", f"{config.ca_file}: {_reason(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.cert_file:
        try:
            # No password: it would be asked for on the terminal.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError("certFile", f"{config.cert_file} with {config.key_file}: {_reason(error)}") from error
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not usable as PEM: {error.reason or error}"
    return getattr(error, "strerror", None) or str(error)
