"""The mapper's HTTP side: upstream's device API (DMI contract 4), `/metrics`, `/healthz` and `/readyz`.

One server for all mappers of a process, on `common.address:common.http_port` of the config:

    async with watch_loop(drivers) as watchdog, serve_web(config, mappers, watchdog=watchdog):
        ...

`mappers` may be any sequence, also one that grows later: it is looked at with every request. A config that would open
the API to strangers, or half a TLS setting, raises `ConfigError` on entering; a port that is taken does not: the mapper
goes on, the server tries again.
"""

from __future__ import annotations

from mappers.sdk.web.server import WebServer, serve_web
from mappers.sdk.web.views import DeviceView, FleetView, MapperView, RegistrationView, UplinkView

__all__ = ["DeviceView", "FleetView", "MapperView", "RegistrationView", "UplinkView", "WebServer", "serve_web"]
