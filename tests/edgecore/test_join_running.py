"""A running edge core joins, renews, and says what is wrong meanwhile."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml

from cloudedge.certificates import load, save, sign_node
from edgecore.bus import Bus, CertificateRenewed, CloudLink
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.joining import Joining
from edgecore.joining.identity import Identity, NodeFiles, read_identity
from edgecore.joining.joining import renewal_due, renewal_pauses
from edgecore.joining.pair import set_file
from tests.edgecore.conftest import Edge, EdgeProcess
from tests.edgecore.join_service import JoinService
from tests.edgecore.peers import DEADLINE_S, NODE, FakeCloud, FakeMapper, device_object, model_object

STOCK = Path(__file__).parents[1] / "data" / "upstream-edgecore.yaml"


@pytest.fixture
async def service(certificates: Path) -> AsyncIterator[JoinService]:
    async with JoinService(certificates) as service:
        yield service


@pytest.fixture
def settings(service: JoinService, tmp_path: Path) -> EdgeHubConfig:
    return EdgeHubConfig(
        http_server=service.url,
        tls_ca_file=str(tmp_path / "rootCA.crt"),
        tls_cert_file=str(tmp_path / "server.crt"),
        tls_private_key_file=str(tmp_path / "server.key"),
    )


def files_of(settings: EdgeHubConfig) -> NodeFiles:
    return NodeFiles(settings.tls_ca_file, settings.tls_cert_file, settings.tls_private_key_file)


class Running:
    """A `Joining`, and what it tells the others."""

    def __init__(self, settings: EdgeHubConfig, file: Path | None = None) -> None:
        self._renewed = asyncio.Semaphore(0)
        bus = Bus()
        bus.subscribe(CertificateRenewed, self._count)
        self.joining = Joining(settings, node=NODE, bus=bus, config_file=file)

    async def _count(self, _: CertificateRenewed) -> None:
        self._renewed.release()

    async def __aenter__(self) -> "Running":
        self._task = asyncio.create_task(self.joining.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def until_renewed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._renewed.acquire()

    async def until_trouble(self, text: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    if text in self.joining.trouble:
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(self.joining.trouble) from None


async def test_a_new_token_is_tried_at_once(
    settings: EdgeHubConfig, service: JoinService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.joining.joining.LOOK_BROKEN_S", 0.05)
    file = tmp_path / "edgecore.yaml"
    file.write_text("modules: {}\n")
    async with Running(settings, file) as running:
        await running.until_trouble("there is no join token: make one with `kubetwin token`")
        assert not running.joining.usable.is_set()
        shown = running.joining.link(CloudLink("wss://cloud"))
        assert "kubetwin join --cloudcore" in shown.trouble
        (tmp_path / "bootstrap-edgecore.conf").write_text(service.token())
        await running.until_renewed()
        assert running.joining.usable.is_set()
        assert running.joining.trouble == ""
    assert not (tmp_path / "bootstrap-edgecore.conf").exists()


async def test_it_waits_for_the_cloud(
    settings: EdgeHubConfig, service: JoinService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgecore.joining.joining.LOOK_BROKEN_S", 0.05)
    monkeypatch.setattr("edgecore.joining.joining.FIRST_PAUSE_S", 0.05)
    service.refusing = 503
    async with Running(msgspec.structs.replace(settings, token=service.token())) as running:
        await running.until_trouble("503")
        async with asyncio.timeout(DEADLINE_S):
            while service.requests.count(("/edge.crt", "token")) < 2:
                service.changed.clear()
                await service.changed.wait()
        service.refusing = 0
        await running.until_renewed()
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING and "503" in r.getMessage()]
    assert len(warnings) == 1


async def test_a_certificate_is_renewed_in_time_and_replaced_files_are_noticed(
    settings: EdgeHubConfig, service: JoinService, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.joining.joining.LOOK_S", 0.05)
    monkeypatch.setattr("edgecore.joining.joining.RENEW_PAUSES_S", (0.05,))
    service.begins_s, service.lifetime_s = -3600, 60  # most of its time is over
    async with Running(msgspec.structs.replace(settings, token=service.token())) as running:
        service.lifetime_s = 60
        await running.until_renewed()
        service.refusing = 500
        await running.until_trouble("cannot be renewed")
        service.refusing, service.lifetime_s = 0, 3600 * 1000
        await running.until_renewed()
        by_cloud = read_identity(files_of(settings), NODE)
        assert service.requests[-1] == ("/edge.crt", f"system:node:{NODE}")
        issued = sign_node(load(certificates, "ca"), NODE)
        save(issued, Path(settings.tls_cert_file).parent, "server")
        await running.until_renewed()
        assert read_identity(files_of(settings), NODE).serial != by_cloud.serial


async def test_what_was_put_in_place_by_half_is_finished_while_it_runs(
    settings: EdgeHubConfig, service: JoinService, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full after the key, say: the pair does not fit together, and there is no token any more."""
    monkeypatch.setattr("edgecore.joining.joining.LOOK_S", 0.05)
    monkeypatch.setattr("edgecore.joining.joining.LOOK_BROKEN_S", 0.05)
    folder, ca = Path(settings.tls_cert_file).parent, load(certificates, "ca")
    (folder / "rootCA.crt").write_bytes((certificates / "ca.crt").read_bytes())
    save(sign_node(ca, NODE), folder, "server")
    async with Running(settings) as running:
        async with asyncio.timeout(DEADLINE_S):
            await running.joining.usable.wait()
        new = folder / "new"
        new.mkdir()
        save(sign_node(ca, NODE), new, "server")
        key, certificate = (new / "server.key").read_bytes(), (new / "server.crt").read_bytes()
        (folder / "server.key").write_bytes(key)
        await running.until_trouble("KEY_VALUES_MISMATCH; cannot join")
        set_file(files_of(settings)).write_bytes(key + certificate)
        await running.until_renewed()
        assert (folder / "server.crt").read_bytes() == certificate
        assert not set_file(files_of(settings)).exists()
    assert service.requests == []


async def test_an_expired_certificate_joins_again(settings: EdgeHubConfig, service: JoinService) -> None:
    service.begins_s, service.lifetime_s = -3600, 1.2
    async with Running(msgspec.structs.replace(settings, token=service.token(), rotate_certificates=False)) as running:
        await running.until_renewed()
    await asyncio.sleep(1.5)  # its time is over now
    service.lifetime_s = 3600
    async with Running(settings) as running:
        await running.until_trouble("has expired (by this machine's clock")
        assert "kubetwin join" in running.joining.trouble
        assert running.joining.usable.is_set()  # the clock may be wrong: the cloud will say
    async with Running(msgspec.structs.replace(settings, token=service.token())) as running:
        await running.until_renewed()
        assert running.joining.trouble == ""


def test_when_a_certificate_is_renewed() -> None:
    year = [renewal_due(Identity(serial=str(n), not_before=1000.0, not_after=2000.0)) for n in range(200)]
    assert 1700 <= min(year) < 1720
    assert 1880 < max(year) <= 1900
    pauses = [pause for pause, _ in zip(renewal_pauses(), range(6), strict=False)]
    for pause, least in zip(pauses, (2, 4, 8, 16, 32, 32), strict=True):
        assert least <= pause <= least * 1.1


async def test_a_process_joins_by_its_file_and_is_renewed_without_loss(
    cloud: FakeCloud, service: JoinService, tmp_path: Path, mapper: FakeMapper
) -> None:
    """Upstream's own flow: upstream's file with a token, and the command."""
    text = STOCK.read_text()
    for default, here in (
        ("/var/lib/kubeedge/", f"{tmp_path}/"),
        ("/etc/kubeedge/", f"{tmp_path}/"),
        ("https://192.0.2.1:10002", service.url),
        ("192.0.2.1:10000", f"127.0.0.1:{cloud.port}"),
        ("tcp://127.0.0.1:1883", "tcp://127.0.0.1:1"),  # no broker there
        ('token: ""', f"token: {service.token()}  # as `keadm gettoken` prints it"),
    ):
        assert default in text
        text = text.replace(default, here)
    file = tmp_path / "config" / "edgecore.yaml"
    file.parent.mkdir()
    file.write_text(text)
    service.begins_s, service.lifetime_s = -3600, 300  # more than 90 % of its time is over: due at once
    edge = EdgeProcess(file)
    await edge.start()
    try:
        async with asyncio.timeout(40):
            while len(service.issued) < 1:
                service.changed.clear()
                await service.changed.wait()
            service.lifetime_s, service.refusing = 3600 * 1000, 503  # not before all is up
            await cloud.put(model_object())
            await cloud.put(device_object())
            async with mapper.running():
                service.refusing = 0
                value = 0
                while cloud.connected < 2:
                    value += 1
                    await mapper.report("default/boiler-1", temperature=str(value))
                    await asyncio.sleep(0.005)
                await cloud.until_value("default/boiler-1", "temperature", str(value))
    finally:
        await edge.end(signal.SIGTERM)
    assert yaml.safe_load(file.read_text())["modules"]["edgeHub"]["token"] == ""
    assert file.read_text().count("\n") == text.count("\n")
    assert service.token().partition(".")[0] not in "\n".join(edge.log)
    warned = [line for line in edge.log if "keys that are not used here" in line]
    assert len(warned) == 1
    assert "modules.edgeStream" in warned[0]


async def test_without_a_certificate_mappers_are_served(
    config: EdgeCoreConfig, tmp_path: Path, cloud: FakeCloud, mapper: FakeMapper
) -> None:
    hub = msgspec.structs.replace(
        config.modules.edge_hub, tls_cert_file=str(tmp_path / "no.crt"), http_server="https://127.0.0.1:1"
    )
    edge = Edge(msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, edge_hub=hub)))
    await edge.start()
    try:
        async with mapper.running():
            assert mapper.devices == {}
    finally:
        await edge.stop()
    assert cloud.connected == 0
