"""A cloud core with nothing but a cluster, as a process, and `kubetwin token` against it."""

import asyncio
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cloudcore.joining import secrets
from cloudedge import certificates
from cloudedge.signing import make_request
from cloudedge.token import bearer_of, check_ca, expiry, mint_token
from kubetwin.apiserver import ApiServer
from kubetwin.cli import main
from tests.cloudcore.join_world import get, token_of
from tests.cloudcore.support import open_client
from tests.cloudcore.test_cloudcore_process import cloudcore, dial

FILES = ("tlsCAFile", "tlsCAKeyFile", "tlsCertFile", "tlsPrivateKeyFile")


async def test_an_empty_machine_and_an_empty_cluster_are_enough(tmp_path: Path) -> None:
    empty = tmp_path / "etc"
    hub = {
        **{name: str(empty / name) for name in FILES},
        "advertiseAddress": ["127.0.0.1"],
        "websocket": {"address": "127.0.0.1", "port": 0},
        "https": {"address": "127.0.0.1", "port": 0},
    }
    config = {
        "commonConfig": {"monitorServer": {"bindAddress": ""}},
        "kubeAPIConfig": {"kubeConfig": str(tmp_path / "api" / "kubeconfig")},
        "modules": {"cloudHub": hub},
    }
    file = tmp_path / "cloudcore.yaml"
    file.write_text(yaml.safe_dump(config))
    async with ApiServer(tmp_path / "api"):
        pass  # it has written its kubeconfig, and is away when cloudcore starts
    async with cloudcore(file) as running:
        await running.until_log("certificates are not here yet")
        async with ApiServer(tmp_path / "api") as api, await open_client(api) as kube:
            port = int((await running.until_log(r"nodes join at https://127\.0\.0\.1:(\d+)"))[1])
            hub_port = (await running.until_log(r"CloudHub listening on 127\.0\.0\.1:(\d+)"))[1]
            token = await token_of(kube)
            pair = await secrets.read_pair(kube, secrets.CA)
            assert pair is not None
            ca = certificates.pem(pair)[0]
            _, answered = await get(port, ca, "/ca.crt")
            check_ca(token, answered)
            request, key = make_request("edge-1")
            headers = {"NodeName": "edge-1", "Authorization": f"Bearer {bearer_of(token)}"}
            status, signed = await get(port, ca, "/edge.crt", body=request, headers=headers)
            assert status == 200
            key_der = certificates.der(certificates.Issued(pair.certificate, key))[1]
            certificates.save(certificates.from_der(signed, key_der), tmp_path, "edge-1")
            (tmp_path / "ca.crt").write_bytes(ca)
            edge = await dial(hub_port, tmp_path)
            await running.until_log("node edge-1 connected")
            await edge.connection.close()
            assert token not in running.log
            assert bearer_of(token) not in running.log
            assert not empty.exists(), "no key is left on the machine"
            await running.stop()
            assert running.process.returncode == 0
            assert "Traceback" not in running.log


async def test_stops_while_it_waits_for_the_cluster(tmp_path: Path) -> None:
    async with ApiServer(tmp_path / "api"):
        pass
    file = tmp_path / "cloudcore.yaml"
    hub = {name: str(tmp_path / name) for name in FILES}
    kube = {"kubeConfig": str(tmp_path / "api" / "kubeconfig")}
    file.write_text(yaml.safe_dump({"kubeAPIConfig": kube, "modules": {"cloudHub": hub}}))
    async with cloudcore(file) as running:
        await running.until_log("certificates are not here yet")
        assert await running.stop() < 5
        assert running.process.returncode == 0


async def run_token(api: ApiServer, *options: str) -> tuple[int, str, str]:
    words = ["token", "--kubeconfig", str(api.kubeconfig), *options]
    result = await asyncio.to_thread(CliRunner().invoke, main, words)
    return result.exit_code, result.stdout.strip(), result.stderr


async def test_the_token_command(api: ApiServer) -> None:
    code, out, err = await run_token(api)
    assert (code, out) == (1, "")
    assert "casecret" in err
    ca = certificates.create_ca()
    pair = certificates.der(ca)
    kept = mint_token(*pair, expires_at=time.time() + 100)
    async with await open_client(api) as kube:
        await secrets.create(kube, "casecret", secrets.CA.data(ca))
        await secrets.create(kube, "tokensecret", secrets.token_data(kept))
        assert (await run_token(api))[1] == kept
        _, fresh, _ = await run_token(api, "--new", "--ttl", "2h")
        assert 7100 < expiry(fresh, *pair) - time.time() <= 7200
        secret = await secrets.find(kube, "tokensecret")
        assert secret is not None
        await secrets.replace(kube, secret, secrets.token_data(mint_token(*pair, expires_at=time.time() - 1)))
        _, instead, err = await run_token(api)
        assert "expired" in err
        assert expiry(instead, *pair) > time.time() + 80_000


@pytest.mark.parametrize("ttl", ("0h", "1", "-1h", "2y", "999d", ""))
def test_what_is_no_time(ttl: str) -> None:
    result = CliRunner().invoke(main, ["token", "--kubeconfig", "/nowhere", "--ttl", ttl])
    assert result.exit_code == 2
