"""A Kubernetes API with our kinds, certificates, and a running cloud."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudcore.devicecontroller import ControllerSettings
from cloudedge import certificates
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import NODES, Cloud, Kubernetes, install_crds, open_client, running_cloud


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs")
    certificates.mint(directory, nodes=NODES, names=["127.0.0.1"])
    return directory


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with ApiServer(tmp_path / "api") as server:
        yield server


@pytest.fixture
async def kube(api: ApiServer) -> AsyncIterator[Kubernetes]:
    """A client of the API with the CRDs installed."""
    async with await open_client(api) as client:
        await install_crds(client)
        yield client


@pytest.fixture
async def cloud(kube: Kubernetes, certs: Path) -> AsyncIterator[Cloud]:
    async with running_cloud(kube, certs, controller=ControllerSettings(patch_interval_s=0.05)) as running:
        yield running
