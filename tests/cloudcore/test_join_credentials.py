"""Where CA, server certificate and token come from, and how they are kept."""

import asyncio
import datetime
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509

from cloudcore.joining import Credentials, TokenKeeper, secrets
from cloudcore.kube import Key, Unavailable
from cloudedge import certificates
from cloudedge.certificates import Issued
from cloudedge.token import expiry, mint_token
from dmi import ConfigError
from kubetwin.apiserver import ApiServer
from tests.cloudcore.join_world import data, files, joining_cloud, token_of
from tests.cloudcore.support import Kubernetes, open_client

NAMES = ("127.0.0.1", "")


async def secret(kube: Kubernetes, name: str) -> dict[str, bytes]:
    return data(await kube.get(secrets.SECRETS, Key("kubeedge", name)))


async def test_an_empty_cluster_gets_all_three_in_upstreams_formats(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path) as cloud:
        token = await cloud.token()
        ca, server = await secret(kube, "casecret"), await secret(kube, "cloudcoresecret")
        assert certificates.from_der(ca["cadata"], ca["cakeydata"]).certificate == cloud.ca.certificate
        pair = certificates.from_der(server["cloudcoredata"], server["cloudcorekeydata"])
        assert certificates.names_of(pair.certificate) == ["127.0.0.1"]
        day = expiry(token, ca["cadata"], ca["cakeydata"]) - time.time()
        assert 23.9 * 3600 < day <= 24 * 3600
        assert [path.name for path in tmp_path.iterdir()] == ["api"], "no key on the disk"


async def test_two_replicas_on_an_empty_cluster_end_with_one_ca(api: ApiServer, tmp_path: Path) -> None:
    clients = [await open_client(api) for _ in range(4)]
    try:
        replicas = [Credentials(client, files(tmp_path / "none"), NAMES) for client in clients]
        await asyncio.gather(*(replica.open() for replica in replicas))
        assert len({replica.ca_der for replica in replicas}) == 1
        assert len({replica.server.serial_number for replica in replicas}) == 1
    finally:
        for client in clients:
            await client.close()


async def test_replicas_with_different_addresses_share_one_certificate(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube:
        first = Credentials(kube, files(tmp_path / "none"), ["10.0.0.1"])
        second = Credentials(kube, files(tmp_path / "none"), ["10.0.0.2", "cloud.example"])
        await first.open()
        await second.open()
        context = first.context(certificate_required=True)
        before = context.cert_store_stats()
        await first._refresh()
        assert first.server == second.server
        assert certificates.names_of(first.server) == ["10.0.0.1", "10.0.0.2", "cloud.example"]
        version = (await kube.get(secrets.SECRETS, Key("kubeedge", "cloudcoresecret")))["metadata"]["resourceVersion"]
        await second._refresh()
        kept = await kube.get(secrets.SECRETS, Key("kubeedge", "cloudcoresecret"))
        assert kept["metadata"]["resourceVersion"] == version, "nobody writes it any more"
        assert context.cert_store_stats() == before


async def test_secrets_of_an_upstream_installation_are_taken(api: ApiServer, tmp_path: Path) -> None:
    ca = certificates.create_ca()
    server = certificates.sign_server(ca, ["127.0.0.1", "10.1.1.1"])
    token = mint_token(*certificates.der(ca), expires_at=time.time() + 20 * 3600)
    async with await open_client(api) as kube:
        await secrets.create(kube, "casecret", secrets.CA.data(ca))
        await secrets.create(kube, "cloudcoresecret", secrets.SERVER.data(server))
        await secrets.create(kube, "tokensecret", secrets.token_data(token))
        async with joining_cloud(kube, tmp_path) as cloud:
            assert cloud.joining.credentials.server == server.certificate
            assert await cloud.token() == token, "good for long enough"
            assert (await cloud.join(headers=await cloud.bearer()))[0] == 200


async def test_files_go_first_and_are_written_back(api: ApiServer, certs: Path) -> None:
    async with await open_client(api) as kube:
        await secrets.create(kube, "casecret", secrets.CA.data(certificates.create_ca()))
        credentials = Credentials(kube, files(certs), NAMES)
        await credentials.open()
        assert credentials.complete_locally
        await credentials._refresh()
        assert (await secret(kube, "casecret"))["cadata"] == credentials.ca_der
        assert (await secret(kube, "cloudcoresecret")).keys() == {"cloudcoredata", "cloudcorekeydata"}


async def test_complete_files_need_no_api_server(certs: Path, kube: Kubernetes) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise Unavailable("cut off by the test")

    kube.get = gone  # type: ignore[method-assign, assignment]
    credentials = Credentials(kube, files(certs), NAMES)
    await credentials.open()
    assert credentials.ca is not None


async def test_certificates_without_the_cas_key_serve_the_nodes_there_are(
    api: ApiServer, certs: Path, tmp_path: Path
) -> None:
    for name in ("ca.crt", "server.crt", "server.key"):
        (tmp_path / name).write_bytes((certs / name).read_bytes())
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path) as cloud:
        assert cloud.joining.credentials.ca is None
        await secrets.create(kube, "casecret", secrets.CA.data(certificates.load(certs, "ca")))
        await cloud.joining.credentials._refresh()
        assert cloud.joining.credentials.ca is not None, "the cluster has it"


async def test_what_cannot_be_used_is_named(api: ApiServer, tmp_path: Path, certs: Path) -> None:
    async with await open_client(api) as kube:
        (tmp_path / "ca.crt").write_text("nonsense")
        (tmp_path / "ca.key").write_text("nonsense")
        with pytest.raises(ConfigError, match=r"ca\.crt and .*ca\.key"):
            await Credentials(kube, files(tmp_path), NAMES).open()
        (tmp_path / "ca.crt").unlink()
        for name in ("server.crt", "server.key"):
            (tmp_path / name).write_bytes((certs / name).read_bytes())
        with pytest.raises(ConfigError, match="neither tlsCAFile"):
            await Credentials(kube, files(tmp_path), NAMES).open()
        await secrets.create(kube, "casecret", {"cadata": b"nonsense", "cakeydata": b"nonsense"})
        with pytest.raises(ConfigError, match="Secret kubeedge/casecret"):
            await Credentials(kube, files(tmp_path / "none"), NAMES).open()
        assert (await secret(kube, "casecret"))["cadata"] == b"nonsense", "it may be all there is of a key"


@pytest.mark.parametrize("why", ("ends", "names", "ca", "damaged"))
async def test_a_server_certificate_that_does_not_do_is_replaced(api: ApiServer, tmp_path: Path, why: str) -> None:
    ca = certificates.create_ca()
    server = certificates.sign_server(ca, ["10.9.9.9"] if why == "names" else ["127.0.0.1"])
    if why == "ends":
        name = server.certificate.subject
        names = x509.SubjectAlternativeName([x509.DNSName("old.example")])
        key = server.key
        ending = certificates.certify(ca, name, key.public_key(), days=3, usages=[], alternatives=names)
        server = Issued(ending, key)
    if why == "ca":
        server = certificates.sign_server(certificates.create_ca(), ["127.0.0.1"])
    async with await open_client(api) as kube:
        await secrets.create(kube, "casecret", secrets.CA.data(ca))
        stored = secrets.SERVER.data(server)
        if why == "damaged":
            stored["cloudcorekeydata"] = b"x"
        await secrets.create(kube, "cloudcoresecret", stored)
        credentials = Credentials(kube, files(tmp_path), NAMES)
        await credentials.open()
        assert credentials.server != server.certificate
        credentials.server.verify_directly_issued_by(ca.certificate)
        assert certificates.covers(credentials.server, ["127.0.0.1"])
        assert credentials.server.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(300)


async def test_a_new_server_certificate_is_served_while_old_connections_go_on(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube, joining_cloud(kube, tmp_path) as cloud:
        credentials = cloud.joining.credentials
        context = ssl.create_default_context(cadata=certificates.pem(cloud.ca)[0].decode())
        reader, writer = await asyncio.open_connection("127.0.0.1", cloud.port, ssl=context)
        before = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        old = await kube.get(secrets.SECRETS, Key("kubeedge", "cloudcoresecret"))
        newer = certificates.sign_server(cloud.ca, ["127.0.0.1", "more.example"])
        await secrets.replace(kube, old, secrets.SERVER.data(newer))
        await credentials._refresh()
        _, second = await asyncio.open_connection("127.0.0.1", cloud.port, ssl=context)
        after = second.get_extra_info("ssl_object").getpeercert()
        assert int(after["serialNumber"], 16) == newer.certificate.serial_number != int(before, 16)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await reader.readline()
        for each in (writer, second):
            each.transport.abort()


async def test_a_lost_ca_secret_comes_back_and_another_one_is_told(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube:
        credentials = Credentials(kube, files(tmp_path), NAMES)
        await credentials.open()
        await kube.delete(secrets.SECRETS, Key("kubeedge", "casecret"))
        await credentials._refresh()
        assert (await secret(kube, "casecret"))["cadata"] == credentials.ca_der
        old = await kube.get(secrets.SECRETS, Key("kubeedge", "casecret"))
        await secrets.replace(kube, old, secrets.CA.data(certificates.create_ca()))
        with pytest.raises(ValueError, match="another CA"):
            await credentials._refresh()


async def test_a_token_is_replaced_in_its_second_half(api: ApiServer, tmp_path: Path) -> None:
    async with await open_client(api) as kube:
        credentials = Credentials(kube, files(tmp_path), NAMES)
        await credentials.open()
        now = [1000.0]
        keepers = [TokenKeeper(kube, credentials, refresh_s=3600.0, clock=lambda: now[0]) for _ in range(2)]
        tokens = []
        for now[0] in (1000.0, 4500.0, 4601.0, 4700.0, 50_000.0):
            for keeper in keepers:
                assert 0 < await keeper.refresh() <= 3600.0
            tokens.append((await secret(kube, "tokensecret"))["tokendata"])
        first, same, second, still, third = tokens
        assert first == same != second == still != third
        old = await kube.get(secrets.SECRETS, Key("kubeedge", "tokensecret"))
        await secrets.replace(kube, old, secrets.token_data("garbled"))
        await keepers[0].refresh()
        assert (await secret(kube, "tokensecret"))["tokendata"] != b"garbled"


async def test_a_failed_refresh_is_tried_again(api: ApiServer, tmp_path: Path) -> None:
    """Upstream's loop ends at the first failure (channel contract 8.3 #9)."""
    async with await open_client(api) as kube:
        credentials = Credentials(kube, files(tmp_path), NAMES)
        await credentials.open()
        kube.cut = True
        keeping = asyncio.create_task(TokenKeeper(kube, credentials, refresh_s=3600.0).run())
        await asyncio.sleep(0.1)
        kube.cut = False
        assert await token_of(kube)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
