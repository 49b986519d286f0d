"""Who is let in: loopback and browsers, token, TLS, client certificates; and which configs are refused."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPSConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from dmi.errors import ConfigError
from mappers.sdk.config import HttpConfig
from mappers.sdk.web import serve_web
from mappers.sdk.web.access import host_name, is_loopback
from tests.mappers.web_world import MemoryMapper, in_thread, mapper_config, served, until

TOKEN = "correct-horse-battery"
WRITE = "/api/v1/devicemethod/plant/pump-1/SetSpeed/speed/5"


async def get(
    port: int, path: str, headers: Mapping[str, str] | None = None, *, tls: ssl.SSLContext | None = None
) -> int:
    """The status of a GET."""

    def call() -> int:
        client: HTTPConnection
        if tls:
            client = HTTPSConnection("localhost", port, timeout=30, context=tls)
        else:
            client = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            client.request("GET", path, headers=dict(headers or {}))
            return client.getresponse().status
        finally:
            client.close()

    return await in_thread(call)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def https(ca: trustme.CA, tmp_path: Path) -> HttpConfig:
    """HTTPS with a certificate of `ca`."""
    cert = ca.issue_cert("localhost", "127.0.0.1")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    return HttpConfig(cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem"))


def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


# browsers


@pytest.mark.parametrize("host", ("localhost", "127.0.0.1:80", "[::1]:7777", "LOCALHOST:1", "127.9.9.9"))
async def test_own_names_are_served(host: str) -> None:
    async with served(MemoryMapper()) as server:
        assert await get(server.port, "/api/v1/ping", {"Host": host}) == 200


@pytest.mark.parametrize(
    "host", ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::", "")
)
@pytest.mark.parametrize("path", ("/api/v1/ping", "/healthz", "/nowhere"))
async def test_page_of_a_name_that_was_rebound_to_loopback_is_refused(host: str, path: str) -> None:
    async with served(MemoryMapper()) as server:
        status = await get(server.port, path, {"Host": host or "@"})
    assert status == 403


@pytest.mark.parametrize(
    "headers",
    (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Referer": "https://evil.example/page"},
        {"Origin": "http://localhost:1"},
    ),
)
async def test_web_page_elsewhere_cannot_switch_a_pump(headers: dict[str, str]) -> None:
    mapper = MemoryMapper()
    async with served(mapper) as server:
        assert await get(server.port, WRITE, headers) == 403
        assert mapper.pump.calls == []
        assert await get(server.port, "/api/v1/ping", headers) == 200


async def test_address_typed_into_a_browser_writes() -> None:
    async with served(MemoryMapper()) as server:
        own = f"http://127.0.0.1:{server.port}"
        assert await get(server.port, WRITE, {"Sec-Fetch-Site": "none"}) == 200
        assert (
            await get(server.port, WRITE, {"Sec-Fetch-Site": "same-origin", "Origin": own, "Referer": own + "/"}) == 200
        )


# the token


async def test_token_is_asked_for_everywhere_but_by_the_probes(token_file: Path) -> None:
    async with served(MemoryMapper(), http=HttpConfig(token_file=str(token_file))) as server:
        for path in ("/api/v1/ping", "/metrics", WRITE, "/nowhere"):
            assert await get(server.port, path) == 401
        for sent in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", TOKEN, "Bearer \xe4"):
            assert await get(server.port, "/metrics", {"Authorization": sent}) == 401
        for sent in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert await get(server.port, "/metrics", {"Authorization": sent}) == 200
        assert await get(server.port, "/healthz") == 200
        assert await get(server.port, "/readyz") == 200


async def test_token_is_taken_over_when_its_file_changes_and_revoked_when_it_goes(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(MemoryMapper(), http=HttpConfig(token_file=str(token_file))) as server:
        new = token_file.with_name("new")
        new.write_text("another-secret-of-length")
        new.replace(token_file)
        assert await get(server.port, "/metrics", {"Authorization": f"Bearer {TOKEN}"}) == 401
        assert await get(server.port, "/metrics", {"Authorization": "Bearer another-secret-of-length"}) == 200
        token_file.unlink()
        assert await get(server.port, "/metrics", {"Authorization": "Bearer another-secret-of-length"}) == 401
        assert await get(server.port, "/metrics", {"Authorization": "Bearer "}) == 401
    assert "nobody is let in" in caplog.text
    assert "another-secret" not in caplog.text


# what is refused to be served


@pytest.mark.parametrize("address", ("0.0.0.0", "::", "", "192.0.2.7", "gateway.example"))
async def test_address_others_reach_needs_a_token_or_client_certificates(address: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.token_file.*http\.client_ca_file") as refused:
        async with serve_web(mapper_config(address=address), []):
            pass
    assert refused.value.path == "common.address"


async def test_address_others_reach_is_served_with_a_token(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(MemoryMapper(), address="0.0.0.0", http=HttpConfig(token_file=str(token_file))) as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "gateway.example"}
        assert await get(server.port, "/metrics", headers) == 200
        assert await get(server.port, "/metrics", {"Host": "gateway.example"}) == 401
    assert "in the clear" in caplog.text


async def test_disabled_server_needs_nothing_and_serves_nothing() -> None:
    async with serve_web(mapper_config(address="0.0.0.0", http=HttpConfig(enabled=False)), []) as server:
        assert server is None


@pytest.mark.parametrize(
    ("given_", "path"),
    (
        ({"cert_file"}, "http.key_file"),
        ({"key_file"}, "http.cert_file"),
        ({"client_ca_file"}, "http.cert_file"),
        ({"client_ca_file", "cert_file"}, "http.key_file"),
    ),
)
async def test_half_a_tls_setting_is_never_plain_http(given_: set[str], path: str, https: HttpConfig) -> None:
    whole = {"cert_file": https.cert_file, "key_file": https.key_file, "client_ca_file": https.cert_file}
    with pytest.raises(ConfigError) as refused:
        async with serve_web(mapper_config(http=msgspec.convert({k: whole[k] for k in given_}, HttpConfig)), []):
            pass
    assert refused.value.path == path


async def test_unusable_files_are_named(tmp_path: Path, https: HttpConfig) -> None:
    junk, short = tmp_path / "junk", tmp_path / "short"
    junk.write_text("junk")
    short.write_text("short")
    for http, path in (
        (HttpConfig(token_file=str(tmp_path / "none")), "http.token_file"),
        (HttpConfig(token_file=str(short)), "http.token_file"),
        (HttpConfig(cert_file=str(junk), key_file=str(junk)), "http.cert_file"),
        (msgspec.structs.replace(https, client_ca_file=str(junk)), "http.client_ca_file"),
    ):
        with pytest.raises(ConfigError) as refused:
            async with serve_web(mapper_config(http=http), []):
                pass
        assert refused.value.path == path


# TLS


async def test_https_is_served_and_plain_http_is_not(https: HttpConfig, ca: trustme.CA) -> None:
    async with served(MemoryMapper(), http=https) as server:
        assert await get(server.port, "/metrics", tls=client_context(ca)) == 200
        with pytest.raises((RemoteDisconnected, ConnectionError)):
            await get(server.port, "/metrics")
        with pytest.raises(ssl.SSLCertVerificationError):
            await get(server.port, "/metrics", tls=ssl.create_default_context())
        await until(lambda: server.tls_failures >= 2)
        assert await get(server.port, "/metrics", tls=client_context(ca)) == 200


async def test_client_certificate_is_asked_for(https: HttpConfig, ca: trustme.CA, tmp_path: Path) -> None:
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    http = msgspec.structs.replace(https, client_ca_file=str(tmp_path / "clients.pem"))
    async with served(MemoryMapper(), address="0.0.0.0", http=http) as server:
        with_cert, with_other = client_context(ca), client_context(ca)
        clients.issue_cert("operator").configure_cert(with_cert)
        trustme.CA().issue_cert("operator").configure_cert(with_other)
        assert await get(server.port, WRITE, tls=with_cert) == 200
        for refused in (client_context(ca), with_other):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await get(server.port, "/healthz", tls=refused)


async def test_certificate_is_taken_over_when_renewed_and_kept_when_spoiled(
    https: HttpConfig, ca: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    renewed_ca = trustme.CA()
    async with served(MemoryMapper(), http=https) as server:
        renewed = renewed_ca.issue_cert("localhost")
        Path(https.cert_file).write_bytes(renewed.cert_chain_pems[0].bytes())  # not the key's any more
        assert await get(server.port, "/metrics", tls=client_context(ca)) == 200
        assert "the certificate in use stays" in caplog.text
        renewed.private_key_pem.write_to_path(https.key_file)
        os.utime(https.key_file, (1, 1))
        assert await get(server.port, "/metrics", tls=client_context(renewed_ca)) == 200


# the port


async def test_port_that_is_taken_is_tried_again_and_the_mapper_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mappers.sdk.web.server.RETRY_S", (0.02, 0.05))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with serve_web(mapper_config(port=port), [MemoryMapper()]) as server:
            assert server is not None
            assert server.port == 0
            assert "common.http_port" in caplog.text
            await until(lambda: server.listen_failures >= 3)
            taken.close()
            await until(lambda: bool(server.port))
            assert await get(server.port, "/api/v1/ping") == 200
    assert sum("cannot listen" in record.message for record in caplog.records) == 1


async def test_localhost_is_served_on_all_its_addresses() -> None:
    async with served(MemoryMapper(), address="localhost") as server:
        assert await get(server.port, "/api/v1/ping") == 200


async def test_an_address_that_the_machine_does_not_have_does_not_keep_it_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container without IPv6 whose `/etc/hosts` gives `localhost` an address of it."""

    async def resolve(_address: str, _port: int) -> list[tuple[int, tuple[Any, ...]]]:
        return [(socket.AF_INET, ("192.0.2.1", 0)), (socket.AF_INET, ("127.0.0.1", 0))]

    monkeypatch.setattr("mappers.sdk.web.server._resolve", resolve)
    async with served(MemoryMapper(), address="localhost") as server:
        assert await get(server.port, "/api/v1/ping") == 200


@given(st.text(max_size=30))
def test_no_text_is_taken_for_loopback_by_mistake(text: str) -> None:
    assert is_loopback(host_name(text)) in (True, False)
    assert not is_loopback(f"{text}.example")
