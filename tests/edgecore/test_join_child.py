"""Joining, one request: where the token comes from and goes, what is checked, and what is left when it fails."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudedge.certificates import mint
from edgecore.joining import request
from edgecore.joining.child import do
from edgecore.joining.identity import NodeFiles, NoIdentity, read_identity
from edgecore.joining.job import Job, Outcome
from edgecore.joining.pair import finish_install, install, set_file
from edgecore.joining.tokens import find_token, forget_token, set_scalar
from tests.edgecore.join_service import JoinService
from tests.edgecore.peers import NODE

CONFIG = """\
# our gateway
modules:
  edgeHub:
    heartbeat: 15  # seconds
    token: "{token}"  # from the operator
    websocket: {{server: "127.0.0.1:10000"}}  # there
"""


@pytest.fixture
async def service(certificates: Path) -> AsyncIterator[JoinService]:
    async with JoinService(certificates) as service:
        yield service


@pytest.fixture
def files(tmp_path: Path) -> NodeFiles:
    return NodeFiles(
        str(tmp_path / "ca" / "rootCA.crt"),
        str(tmp_path / "certs" / "server.crt"),
        str(tmp_path / "certs" / "server.key"),
    )


async def asked(job: Job) -> Outcome:
    return await asyncio.to_thread(do, job)


def job(service: JoinService, files: NodeFiles, **more: str) -> Job:
    return Job(what="join", node=NODE, servers=service.url, files=files, **more)


async def test_a_token_becomes_a_certificate_and_is_gone(
    service: JoinService, files: NodeFiles, tmp_path: Path
) -> None:
    config = tmp_path / "edgecore.yaml"
    config.write_text(CONFIG.format(token=service.token()))
    config.chmod(0o640)
    assert await asked(job(service, files, config_file=str(config))) == Outcome()
    assert read_identity(files, NODE).not_after > 0
    assert service.requests == [("/ca.crt", ""), ("/edge.crt", "token")]
    assert config.read_text() == CONFIG.format(token="")  # every comment as it was
    assert config.stat().st_mode & 0o777 == 0o640
    assert Path(files.key).stat().st_mode & 0o777 == 0o600
    assert Path(files.key).read_text().startswith("-----BEGIN EC PRIVATE KEY-----")
    assert sorted(p.name for p in Path(files.key).parent.iterdir()) == ["server.crt", "server.key"]


@pytest.mark.parametrize("folder", ("etc", "etc/config"))
async def test_a_bootstrap_file_goes_before_the_configuration(
    service: JoinService, files: NodeFiles, tmp_path: Path, folder: str
) -> None:
    config = tmp_path / folder / "edgecore.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG.format(token="of.no.use.x"))
    bootstrap = tmp_path / "etc" / "bootstrap-edgecore.conf"
    bootstrap.write_text("\n")
    assert find_token(config) == "of.no.use.x"  # an empty one says nothing
    bootstrap.write_text(service.token() + "\n")
    assert await asked(job(service, files, config_file=str(config))) == Outcome()
    assert not bootstrap.exists()
    assert find_token(config) == ""


async def test_what_does_not_work_says_what_to_do_and_leaves_nothing(
    service: JoinService, files: NodeFiles, tmp_path: Path
) -> None:
    config = tmp_path / "edgecore.yaml"
    config.write_text(CONFIG.format(token=""))
    nobody = "https://127.0.0.1:1"
    good = service.token()
    cases = {
        "kubetwin token` on the cloud's side, and put one into": (job(service, files, config_file=str(config)), True),
        "four parts": (job(service, files, token="a.b.c"), True),
        "not the one the join token is of": (job(service, files, token=service.token(ca_hash="ab" * 32)), True),
        "the join token ended at": (job(service, files, token=service.token(valid_s=-60)), True),
        "make a new join token": (job(service, files, token=good[:-4] + "AAAA"), True),
        "https://host:port": (Job("join", NODE, "http://127.0.0.1:1", files, token=good), True),
        "cannot be asked: Connection refused": (Job("join", NODE, nobody, files, token=good), False),
    }
    for said, (job_, final) in cases.items():
        outcome = await asked(job_)
        assert said in outcome.problem
        assert outcome.final == final, outcome
        assert good not in outcome.problem
    service.refusing = 500
    outcome = await asked(job(service, files, token=good))
    assert "500 'not now'" in outcome.problem
    assert not outcome.final
    service.refusing = 0
    service.other_name = "edge-2"
    assert "is of 'system:node:edge-2'" in (await asked(job(service, files, token=good))).problem
    assert not Path(files.ca).exists()
    assert list(Path(files.key).parent.iterdir()) == []


async def test_several_servers_are_tried_in_turn(service: JoinService, files: NodeFiles) -> None:
    servers = f"https://127.0.0.1:1, {service.url}"
    assert await asked(Job("join", NODE, servers, files, token=service.token())) == Outcome()


async def test_a_certificate_that_begins_a_little_later_is_taken(service: JoinService, files: NodeFiles) -> None:
    service.begins_s = 30
    assert await asked(job(service, files, token=service.token())) == Outcome()
    with pytest.raises(NoIdentity, match="not valid yet") as early:
        read_identity(files, NODE)
    assert early.value.early


async def test_the_certificate_itself_gets_the_next_one(service: JoinService, files: NodeFiles) -> None:
    assert await asked(job(service, files, token=service.token())) == Outcome()
    before, ca = read_identity(files, NODE), Path(files.ca).stat()
    assert await asked(Job("renew", NODE, service.url, files)) == Outcome()
    assert service.requests[-1] == ("/edge.crt", f"system:node:{NODE}")
    assert read_identity(files, NODE).serial != before.serial
    assert Path(files.ca).stat().st_mtime_ns == ca.st_mtime_ns
    service.refusing = 401
    refused = await asked(Job("renew", NODE, service.url, files))
    assert "join again with a token" in refused.problem
    assert refused.final


def test_who_is_shut_out_is_not_told_to_try_another_token() -> None:
    refused = request._refusal("https://cloud:10002/edge.crt answered 401 'node edge-1 is revoked'", 401, None)
    assert "ConfigMap kubeedge/kubetwin-revoked" in str(refused)
    assert "token" not in str(refused)
    assert refused.final


def test_what_a_certificate_must_be(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        mint(directory, nodes=[NODE, "edge-2"], names=["127.0.0.1"])

    def files(crt: Path = here / f"{NODE}.crt", key: Path = here / f"{NODE}.key", ca: Path = here) -> NodeFiles:
        return NodeFiles(str(ca / "ca.crt"), str(crt), str(key))

    assert read_identity(files(), NODE).serial
    for wrong, said in (
        (files(here / "edge-2.crt", here / "edge-2.key"), "is of 'system:node:edge-2'"),
        (files(key=there / f"{NODE}.key"), "KEY_VALUES_MISMATCH"),
        (files(ca=there), "unable to get local issuer certificate"),
        (files(here / "server.crt", here / "server.key"), "unsuitable certificate purpose"),
        (files(here / "gone.crt"), "gone.crt: No such file"),
    ):
        with pytest.raises(NoIdentity, match=said):
            read_identity(wrong, NODE)


KILLED = """
import os, signal, sys
from pathlib import Path
from edgecore.joining import pair
from edgecore.joining.identity import NodeFiles
left = int(sys.argv[5])
def die_at(call):
    def counted(*arguments, **more):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return counted
Path.replace, Path.unlink, os.fsync, os.open = map(die_at, (Path.replace, Path.unlink, os.fsync, os.open))
pair.install(NodeFiles(*sys.argv[1:4]), Path(sys.argv[4]).read_bytes())
"""


@pytest.mark.parametrize("point", range(0, 24, 3))
def test_killed_anywhere_the_files_are_the_old_set_or_the_new_one(
    tmp_path: Path, certificates: Path, point: int
) -> None:
    other = tmp_path / "other"
    mint(other, nodes=[NODE], names=["127.0.0.1"])
    files = NodeFiles(str(tmp_path / "rootCA.crt"), str(tmp_path / "server.crt"), str(tmp_path / "server.key"))
    sets = [
        b"".join((directory / name).read_bytes() for name in (f"{NODE}.key", f"{NODE}.crt", "ca.crt"))
        for directory in (certificates, other)
    ]
    install(files, sets[0])
    before = read_identity(files, NODE)
    new = tmp_path / "new"
    new.write_bytes(sets[1])
    arguments = [files.ca, files.certificate, files.key, str(new), str(point)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=30)
    assert ended.returncode in (-signal.SIGKILL, 0)
    finish_install(files)
    after = read_identity(files, NODE)  # a pair, and of the CA that is there
    assert (after.serial != before.serial) == (Path(files.ca).read_bytes() in sets[1])
    assert not set_file(files).exists()


def test_half_a_set_is_thrown_away(tmp_path: Path, certificates: Path) -> None:
    files = NodeFiles(str(tmp_path / "rootCA.crt"), str(tmp_path / "server.crt"), str(tmp_path / "server.key"))
    set_file(files).write_bytes((certificates / f"{NODE}.key").read_bytes() + b"-----BEGIN CERTIFICATE-----\nMII")
    assert not finish_install(files)
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
def test_only_the_token_is_taken_out_of_the_file(token: str) -> None:
    text = "# a\n" + yaml.safe_dump({"modules": {"edgeHub": {"token": token, "heartbeat": 15}}, "x": [token]}) + "# b\n"
    changed = set_scalar(text, ("modules", "edgeHub", "token"), '""')
    assert changed is not None
    assert yaml.safe_load(changed) == {"modules": {"edgeHub": {"token": "", "heartbeat": 15}}, "x": [token]}
    assert changed.startswith("# a\n")
    assert changed.endswith("# b\n")


def test_a_token_that_cannot_be_taken_out_is_named(tmp_path: Path) -> None:
    config = tmp_path / "edgecore.yaml"
    config.write_text("modules: {edgeHub: {token: &t a.b.c.d}}\nother: *t\n")
    assert forget_token(config) == f"take modules.edgeHub.token out of {config}"
    assert find_token(config) == "a.b.c.d"
