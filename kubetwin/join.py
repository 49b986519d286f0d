"""`kubetwin join`: makes this machine a node. What `keadm join` does, without a service manager."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import click
import msgspec

from dmi.errors import ConfigError
from kubetwin.needs import needs

if TYPE_CHECKING:
    from edgecore.config import EdgeCoreConfig
    from edgecore.joining.identity import NodeFiles

__all__ = ["join"]

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
_DEFAULT_FILE: Final = Path("/etc/kubeedge/config/edgecore.yaml")


@click.command(short_help="Make this machine a node: configuration, CA and certificate.")
@click.option(
    "--cloudcore",
    required=True,
    metavar="HOST:PORT",
    help="Of CloudHub, such as cloud.example:10000. Several cloud cores: with commas between.",
)
@click.option("--token", envvar="KUBETWIN_JOIN_TOKEN", show_envvar=True, help="As `kubetwin token` prints it.")
@click.option("--token-file", type=click.File("r"), help="Where it is instead, - for standard input.")
@click.option("--node", default="", help="The node's name. [default: the host's name]")
@click.option("--certport", type=click.IntRange(1, 65535), default=10002, show_default=True, help="Where to join.")
@click.option("--config", "file", type=_FILE, help="Written if it is not there. [default: edgecore.yaml in --data, or"
              f" {_DEFAULT_FILE}]")  # fmt: skip
@click.option("--data", type=_FOLDER, help="Keep all in this folder. [default: upstream's, in /etc and /var/lib]")
@click.option("--force", is_flag=True, help="Although the name is taken, or there is a certificate already.")
def join(
    cloudcore: str,
    token: str | None,
    token_file: TextIO | None,
    node: str,
    certport: int,
    file: Path | None,
    data: Path | None,
    force: bool,
) -> None:
    """Make this machine a node: write its configuration, fetch the cloud's CA and a certificate."""
    needs("edgecore.joining.request", "edge")
    from edgecore.joining.identity import NodeFiles, NoIdentity, read_identity

    text = token_file.read() if token_file is not None else token or ""
    if not text.strip():
        raise click.UsageError("there is no token: make one with `kubetwin token` on the cloud's side")
    file = file or (data / "edgecore.yaml" if data is not None else _DEFAULT_FILE)
    config = _settings(file, cloudcore=cloudcore, node=node, certport=certport, data=data)
    hub = config.modules.edge_hub
    files = NodeFiles(hub.tls_ca_file, hub.tls_cert_file, hub.tls_private_key_file)
    if not force:
        try:
            until = _day(read_identity(files, config.node).not_after)
        except NoIdentity:
            pass
        else:
            raise click.ClickException(
                f"node {config.node} has joined already: {files.certificate} holds until {until}; --force to join again"
            )
    if not force and _is_taken(hub.http_server, config.node, text):
        raise click.ClickException(
            f"the cloud has a node {config.node} already: choose another --node, or --force if this machine is to be it"
        )
    is_new = not file.exists()
    if is_new:
        _write_config(file, config)
    try:
        _fetch(config, files, file, text)
    except BaseException:
        if is_new:  # or the next try, with another --node, say, would have to fit it
            file.unlink(missing_ok=True)
        raise
    until = _day(read_identity(files, config.node).not_after)
    click.echo(f"node {config.node} has joined; its certificate holds until {until}. Start it with:", err=True)
    click.echo(f"edgecore --config {file}")


def _is_taken(servers: str, node: str, text: str) -> bool:
    """What the first cloud core says that answers.

    Raises:
        ClickException: None does, or none with the CA of the token.
    """
    from edgecore.joining import request

    problems: dict[str, None] = {}
    try:
        token = request.read_token(text)
        for server in request.servers_of(servers):
            try:
                ca = request.fetch_ca(server, token)
                return request.ask_node(server, node, ca.context)
            except request.JoinError as error:
                problems[str(error)] = None
    except request.JoinError as error:
        raise click.ClickException(str(error)) from error
    raise click.ClickException("; ".join(problems))


def _settings(file: Path, *, cloudcore: str, node: str, certport: int, data: Path | None) -> EdgeCoreConfig:
    """Those of the file, which must say the same, or new ones."""
    from cloudedge.tls import NODE_NAME
    from edgecore.config import EdgeCoreConfig
    from edgecore.configfile import is_host_and_port, load_config

    servers = [part.strip() for part in cloudcore.split(",")]
    for server in servers:
        if not is_host_and_port(server):
            raise click.BadParameter(f"{server!r} is not of the form host:port", param_hint="--cloudcore")
    cloudcore = ",".join(servers)
    http_server = ",".join(f"https://{server.rpartition(':')[0]}:{certport}" for server in servers)
    if not file.exists():
        config = _new_settings(EdgeCoreConfig(), cloudcore, http_server, node, data)
        if not NODE_NAME.fullmatch(config.node):
            raise click.BadParameter(
                f"{config.node!r} cannot be a node's name: lower-case letters, digits, '-' and '.'", param_hint="--node"
            )
        return config
    config = load_config(file)
    hub = config.modules.edge_hub
    for key, found, wanted in (
        ("modules.edged.hostnameOverride", config.node, node or config.node),
        ("modules.edgeHub.websocket.server", hub.websocket.server, cloudcore),
        ("modules.edgeHub.httpServer", hub.http_server, http_server),
    ):
        if not set(wanted.split(",")) <= {part.strip() for part in found.split(",")}:
            raise click.ClickException(
                f"{file} is there, and says {key}: {found!r}, not {wanted!r}: change it there, or remove the file"
            )
    return config


def _new_settings(
    config: EdgeCoreConfig, cloudcore: str, http_server: str, node: str, data: Path | None
) -> EdgeCoreConfig:
    replace = msgspec.structs.replace
    modules, database = config.modules, config.database
    socket = replace(modules.edge_hub.websocket, server=cloudcore)
    hub = replace(modules.edge_hub, http_server=http_server, websocket=socket)
    twin = modules.device_twin
    if data is not None:
        data = data.absolute()
        database = replace(database, data_source=str(data / "edgecore.db"))
        twin = replace(twin, dmi_sock_path=f"{data}/")
        hub = replace(
            hub,
            tls_ca_file=str(data / "ca" / "rootCA.crt"),
            tls_cert_file=str(data / "certs" / "server.crt"),
            tls_private_key_file=str(data / "certs" / "server.key"),
        )
    edged = replace(modules.edged, hostname_override=node or config.node)
    modules = replace(modules, edged=edged, edge_hub=hub, device_twin=twin)
    return replace(config, database=database, modules=modules)


def _write_config(file: Path, config: EdgeCoreConfig) -> None:
    """Upstream's keys, those that one has to look at; what is read back is checked like any other file."""
    from edgecore.configfile import load_config, to_yaml
    from edgecore.joining.pair import write_file

    Path(config.database.data_source).parent.mkdir(parents=True, exist_ok=True)
    write_file(file, to_yaml(config, minimal=True).encode(), 0o644)
    try:
        load_config(file)
    except ConfigError:
        file.unlink()
        raise


def _fetch(config: EdgeCoreConfig, files: NodeFiles, file: Path, text: str) -> None:
    from edgecore.joining.child import do
    from edgecore.joining.job import Job
    from edgecore.joining.tokens import forget_token

    job = Job(what="join", node=config.node, servers=config.modules.edge_hub.http_server, files=files, token=text)
    outcome = do(job)
    if outcome.problem:
        raise click.ClickException(outcome.problem)
    if left := forget_token(file):
        click.echo(f"An older join token is still there: {left}", err=True)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
