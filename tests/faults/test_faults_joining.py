"""A node joins over a path that breaks, with tokens and certificates whose time is over, and past who hogs the port."""

import contextlib
import datetime
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloudedge.certificates import Issued, load, load_files, node_subject, pem
from tests.e2e.harness import wait_for
from tests.faults.proxy import Direction, Faults
from tests.faults.world import NODE, WITHIN_S, World, faulty_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with faulty_world(seed=51, joined=False) as world:
        own = {name: str(credentials(world) / file) for name, file in FILES.items()}
        world.reconfigure("edgecore.yaml", {"modules": {"edgeHub": own}})
        give_token(world)
        world.start("edgecore")
        world.start("mapper-modbus")
        world.turn_all(51)
        world.wish_all(5100)
        world.all_right()
        world.note_memory()
        yield world


FILES = {"tlsCaFile": "ca.crt", "tlsCertFile": "node.crt", "tlsPrivateKeyFile": "node.key"}


def credentials(world: World) -> Path:
    """What the edge core has, and nobody else."""
    return world.plan.directory / "edge"


def token_file(world: World) -> Path:
    return world.plan.directory / "bootstrap-edgecore.conf"


def token(world: World, *options: str) -> str:
    command = [sys.executable, "-m", "kubetwin", "token", "--kubeconfig", str(world.plan.kubeconfig), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def give_token(world: World, text: str = "") -> None:
    """Put it where the edge core looks, as a new file each time."""
    token_file(world).write_text(text or token(world))
    token_file(world).chmod(0o600)


def as_installed(world: World) -> None:
    """The edge core of a machine that has never joined, and is started next."""
    world.kill("edgecore")
    for file in [*credentials(world).glob("*"), *world.plan.directory.glob("edgecore.db*")]:
        file.unlink()
    token_file(world).unlink(missing_ok=True)


def assert_joined(world: World) -> Issued:
    """Its files are whole, belong together, and are this node's; the token is gone."""
    wait_for(lambda: (credentials(world) / "node.key").exists(), within_s=90, what="there is a certificate")
    world.all_right(90)
    issued = load_files(credentials(world) / "node.crt", credentials(world) / "node.key")
    assert issued.certificate.subject == node_subject(NODE)
    issued.certificate.verify_directly_issued_by(load(world.plan.certificates, "ca").certificate)
    assert (credentials(world) / "node.key").stat().st_mode & 0o777 == 0o600
    assert not token_file(world).exists()
    left = [file.name for file in credentials(world).iterdir() if file.name not in FILES.values()]
    assert left == [], "nothing half-made is left behind"
    return issued


@pytest.mark.parametrize("direction", ("up", "down"))
def test_cut_during_the_join(well: World, direction: Direction) -> None:
    """At the first byte, in TLS's greetings, in the request, in the certificate: a new token is tried at once."""
    rng = random.Random(f"join {direction}")
    as_installed(well)
    well.join.set(**{direction: Faults(cut_after=0)})  # type: ignore[arg-type]  # up or down
    text = token(well)
    give_token(well, text)
    well.start("edgecore")
    for _ in range(8):
        cuts = well.join.cuts
        well.join.set(**{direction: Faults(cut_after=rng.randrange(1, 2_000))})  # type: ignore[arg-type]
        if token_file(well).exists():
            give_token(well, text)
        wait_for(lambda c=cuts: well.join.cuts > c or well.hub.open, within_s=30, what="the join is cut")  # type: ignore[misc]
        if well.hub.open:
            break  # so many bytes are enough
    well.join.heal()
    if token_file(well).exists():
        give_token(well, text)
    assert_joined(well)


def test_kill_9_during_the_join(well: World) -> None:
    rng = random.Random("kill the join")
    as_installed(well)
    text = token(well)
    give_token(well, text)
    for _ in range(6):
        well.launch("edgecore")
        time.sleep(rng.uniform(0.5, 2.5))
        well.kill("edgecore")
    well.start("edgecore")
    assert_joined(well)


def test_the_cloud_is_killed_during_the_join(well: World) -> None:
    rng = random.Random("kill the cloud")
    as_installed(well)
    give_token(well)
    well.start("edgecore")
    for _ in range(3):
        time.sleep(rng.uniform(0, 1))
        well.restart("cloudcore")
    assert_joined(well)


def test_a_token_whose_time_is_over(well: World) -> None:
    late = token(well, "--new", "--ttl", "1s")
    as_installed(well)
    give_token(well, late)
    time.sleep(1.5)
    well.start("edgecore")
    wait_for(lambda: "expired" in well.log("edgecore"), within_s=WITHIN_S, what="the log says why it cannot join")
    assert list(credentials(well).glob("node.*")) == []
    assert well.hub.open == 0
    refused = well.count("refused_total", "token")
    answer = ask_for_certificate(well, late)
    assert answer.startswith(b"HTTP/1.1 401"), answer
    assert well.count("refused_total", "token") == refused + 1
    give_token(well)
    assert_joined(well)


def ask_for_certificate(world: World, text: str, node: str = NODE) -> bytes:
    """What the join service says to who asks without looking at the token first."""
    bearer = text.partition(".")[2]
    context = ssl.create_default_context(cafile=str(world.plan.certificates / "ca.crt"))
    head = f"GET /edge.crt HTTP/1.1\r\nHost: h\r\nNodeName: {node}\r\nAuthorization: Bearer {bearer}\r\n"
    with (
        socket.create_connection(("127.0.0.1", world.join_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(f"{head}Content-Length: 1\r\n\r\nx".encode())
        return sock.recv(4096)


@pytest.mark.parametrize("which", ("signature", "claims", "algorithm", "node"))
def test_forged_tokens(well: World, which: str) -> None:
    parts = token(well).split(".")
    if which == "signature":
        parts[3] = parts[3][:-2] + ("AA" if parts[3][-2:] != "AA" else "BB")
    elif which == "claims":
        parts[2] = "eyJleHAiOjk5OTk5OTk5OTl9"  # {"exp":9999999999}
    elif which == "algorithm":
        parts[1:] = ["eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0", "eyJleHAiOjk5OTk5OTk5OTl9", ""]  # alg none
    node = "../edge-9" if which == "node" else NODE
    answer = ask_for_certificate(well, ".".join(parts), node)
    assert answer.split()[1] in (b"401", b"400"), answer


def certificate_until(world: World, seconds: float) -> None:
    """Give the edge core a certificate that ends so many seconds from now; a tenth of its time is still to come."""
    ca, key = load(world.plan.certificates, "ca"), ec.generate_private_key(ec.SECP256R1())
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(node_subject(NODE))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(hours=1))
        .not_valid_after(end)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    certificate_text, key_text = pem(Issued(certificate, key))
    (credentials(world) / "node.key").write_bytes(key_text)
    (credentials(world) / "node.crt").write_bytes(certificate_text)


def serial_of(world: World) -> int:
    return x509.load_pem_x509_certificate((credentials(world) / "node.crt").read_bytes()).serial_number


def test_a_certificate_is_renewed_while_values_change(well: World) -> None:
    """It has used up nine tenths of its time when the edge core starts, which it does with it."""
    well.kill("edgecore", signal.SIGTERM)
    certificate_until(well, 120)
    serial = serial_of(well)
    with well.changing(seed=52):
        well.start("edgecore")
        wait_for(lambda: serial_of(well) != serial, within_s=WITHIN_S, what="it is renewed")
    assert_joined(well)


def test_a_certificate_that_ends_while_nobody_renews_it(well: World) -> None:
    """The join port is away until it is too late; then the node needs a token, says so, and goes on once it has one."""
    well.kill("edgecore", signal.SIGTERM)
    well.join.refuse()
    certificate_until(well, 8)
    well.start("edgecore")
    well.turn_all(53)
    well.all_right()
    time.sleep(8)
    well.hub.cut()
    well.turn_all(54)
    wait_for(lambda: "token" in well.log("edgecore")[-3000:], within_s=60, what="the log says that it needs a token")
    well.join.refuse(False)
    assert well.wrong(), "no connection without a certificate"
    give_token(well)
    assert_joined(well)


@contextlib.contextmanager
def hogging(port: int, address: str, count: int) -> Iterator[list[int]]:
    """Somebody at `address` who keeps `count` connections to a port, and says a byte on each now and then."""
    enough, opened = threading.Event(), [0]

    def hog() -> None:
        held: list[socket.socket] = []
        while not enough.wait(0.05):
            while len(held) < count:
                try:
                    held.append(socket.create_connection(("127.0.0.1", port), timeout=2, source_address=(address, 0)))
                    held[-1].setblocking(False)
                    opened[0] += 1
                except OSError:
                    break
            for one in list(held):
                try:
                    one.send(b"\x16")
                    if one.recv(1) == b"":
                        raise ConnectionError
                except BlockingIOError:
                    pass
                except OSError:
                    one.close()
                    held.remove(one)
        for one in held:
            one.close()

    thread = threading.Thread(target=hog, name="hog")
    thread.start()
    try:
        yield opened
    finally:
        enough.set()
        thread.join()


HOG_BYTES = 16_000_000
"""Of memory: the port gives one address 32 connections, and TLS takes 300 KB for each."""


def test_somebody_hogs_the_join_port(well: World) -> None:
    """From one address, with more connections than the port takes in all. What that costs is bounded, and paid once."""
    before = well.memory()["cloudcore"]
    with hogging(well.join_port, "127.0.0.66", 300) as opened:
        time.sleep(4)
    assert opened[0] > 300, "they were closed, and came again"
    assert well.memory()["cloudcore"] - before < HOG_BYTES
    well.note_memory()
    as_installed(well)
    give_token(well)
    with hogging(well.join_port, "127.0.0.66", 300):
        well.start("edgecore")
        assert_joined(well)
    assert psutil.Process(well.pid("cloudcore")).num_fds() < 100, "none is left open"
