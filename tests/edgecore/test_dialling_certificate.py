"""A cloud whose certificate is not of this time: said as that, not as a wrong name or CA."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from cloudedge import certificates
from cloudedge.certificates import create_ca, save, sign_node, sign_server
from cloudedge.connection import Connection
from cloudedge.listening import serve
from cloudedge.tls import server_context
from dmi.metrics import Metrics
from edgecore.config import EdgeHubConfig
from edgecore.edgehub.dialling import Dialler

DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(("days", "backdate"), ((-1, 2 * DAY), (365, -DAY)), ids=("has ended", "is to come"))
async def test_what_is_wrong_is_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, backdate: datetime.timedelta
) -> None:
    ca = create_ca()
    save(ca, tmp_path, "ca")
    save(sign_node(ca, "edge-1"), tmp_path, "edge-1")
    monkeypatch.setattr(certificates, "CA_DAYS", days)
    monkeypatch.setattr(certificates, "_BACKDATE", backdate)
    save(sign_server(ca, ["127.0.0.1"]), tmp_path, "server")
    cloud = server_context(
        ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "server.crt", key_file=tmp_path / "server.key"
    )
    listener = await serve(lambda _: "edge-1", Connection.abort, host="127.0.0.1", port=0, ssl_context=cloud)
    config = EdgeHubConfig(
        tls_ca_file=str(tmp_path / "ca.crt"),
        tls_cert_file=str(tmp_path / "edge-1.crt"),
        tls_private_key_file=str(tmp_path / "edge-1.key"),
    )
    dialler = Dialler(config, node="edge-1", metrics=Metrics())
    try:
        assert await dialler.dial(f"wss://127.0.0.1:{listener.sockets[0].getsockname()[1]}") is None
    finally:
        listener.close()
        await listener.wait_closed()
    assert "the cloud's certificate is not of this time" in dialler.trouble
