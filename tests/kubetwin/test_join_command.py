"""`kubetwin join`, the command, at a real join service."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudedge.certificates import mint
from edgecore.configfile import load_config
from edgecore.joining.identity import NodeFiles, read_identity
from tests.edgecore.join_service import JoinService


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[JoinService]:
    mint(tmp_path / "cloud", nodes=[], names=["127.0.0.1"])
    async with JoinService(tmp_path / "cloud") as service:
        yield service


async def join(
    service: JoinService, *arguments: str, token: str = "", cloudcore: str = "127.0.0.1:10000"
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetwin", "join", "--cloudcore", cloudcore, "--certport", str(service.port),
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "KUBETWIN_JOIN_TOKEN": token},
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, errors = await process.communicate()
    assert b"Traceback" not in errors
    assert not token or token not in errors.decode() + out.decode()
    return process.returncode or 0, out.decode(), errors.decode()


async def test_a_machine_becomes_a_node(service: JoinService, tmp_path: Path) -> None:
    data = tmp_path / "node"
    arguments = ("--node", "edge-9", "--data", str(data))
    code, out, errors = await join(service, *arguments, "--token", service.token())
    assert (code, out) == (0, f"edgecore --config {data}/edgecore.yaml\n"), errors
    config = load_config(data / "edgecore.yaml")
    assert config.node == "edge-9"
    assert config.modules.edge_hub.websocket.server == "127.0.0.1:10000"
    assert config.modules.edge_hub.token == ""
    assert read_identity(
        NodeFiles(f"{data}/ca/rootCA.crt", f"{data}/certs/server.crt", f"{data}/certs/server.key"), "edge-9"
    )
    code, _, errors = await join(service, *arguments, token=service.token())
    assert code == 1
    assert "edge-9 has joined already" in errors
    service.known_nodes.add("edge-9")
    code, _, errors = await join(service, *arguments, "--force", token=service.token())
    assert code == 0, errors
    assert len(service.issued) == 2


async def test_of_several_cloud_cores_one_that_answers_is_enough(service: JoinService, tmp_path: Path) -> None:
    both, data = "127.0.0.2:10000, 127.0.0.1:10001", tmp_path / "node"  # nobody listens on the first
    code, _, errors = await join(
        service, "--node", "edge-9", "--data", str(data), token=service.token(), cloudcore=both
    )
    assert code == 0, errors
    hub = load_config(data / "edgecore.yaml").modules.edge_hub
    assert hub.websocket.server == "127.0.0.2:10000,127.0.0.1:10001"
    assert hub.http_server == f"https://127.0.0.2:{service.port},https://127.0.0.1:{service.port}"


async def test_what_is_in_the_way_is_named(service: JoinService, tmp_path: Path) -> None:
    service.known_nodes.add("edge-9")
    other = tmp_path / "other.yaml"
    other.write_text(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n"
        "modules: {edged: {hostnameOverride: edge-8}, edgeHub: {websocket: {server: '127.0.0.1:10000'}}}\n"
    )
    data = ("--data", str(tmp_path / "node"))
    for arguments, token, said in (
        (("--node", "edge-9", *data), service.token(), "the cloud has a node edge-9 already"),
        (("--node", "edge-9", *data), service.token(ca_hash="0" * 64), "not the one the join token is of"),
        (("--node", "edge-9", *data), "", "there is no token"),
        (("--node", "edge-7", *data), service.token(valid_s=-5), "the join token ended at"),
        (("--node", "Edge_7", *data), service.token(), "'Edge_7' cannot be a node's name"),
        (("--node", "edge-9", "--config", str(other)), service.token(), "says modules.edged.hostnameOverride"),
    ):
        code, out, errors = await join(service, *arguments, token=token)
        assert code != 0
        assert said in errors
        assert out == ""
        assert not (tmp_path / "node" / "edgecore.yaml").exists()
    assert not service.issued
