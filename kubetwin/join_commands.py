"""`kubetwin token`: what an operator takes to a new node."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Final

import click

from kubetwin.needs import needs

__all__ = ["token"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_TTL_S: Final = 365 * 86400.0


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9})([smhd])", str(value))
        if match is None or not 0 < (seconds := float(match[1]) * _UNITS[match[2]]) <= MAX_TTL_S:
            self.fail(f"{value!r} is not a time such as 90m, 24h or 7d, of a year at most", param, ctx)
        return seconds


@click.command(short_help="Print a join token for a new node.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KUBECONFIG",
    help="Of the cluster. [default: $KUBECONFIG, ~/.kube/config, or the pod's account]",
)
@click.option("--new", is_flag=True, help="Make one, even if the cluster's is good.")
@click.option("--ttl", type=_Duration(), default="24h", show_default=True, help="Of one that is made.")
def token(kubeconfig: Path | None, new: bool, ttl: float) -> None:
    """Print a join token.

    It is the one that cloudcore keeps in Secret kubeedge/tokensecret, or one made with the CA of the cluster. Who has
    it can have a certificate for any node until it ends: hand it on like a password.
    """
    needs("cloudcore.kube", "cloud")
    try:
        click.echo(asyncio.run(_token(_kubeconfig(kubeconfig), new=new, ttl_s=ttl)))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _kubeconfig(given: Path | None) -> str:
    if given is not None:
        return str(given)
    usual = Path.home() / ".kube" / "config"
    return str(usual) if usual.is_file() else ""


async def _token(kubeconfig: str, *, new: bool, ttl_s: float) -> str:
    """Raises: ClickException, ValueError: There is none, and none can be made."""
    from cloudcore.joining import secrets
    from cloudcore.kube import KubeClient, KubeError
    from cloudedge.certificates import der
    from cloudedge.token import BadToken, expiry, mint_token

    try:
        async with await KubeClient.open(kubeconfig=kubeconfig) as client:
            ca = await secrets.read_pair(client, secrets.CA)
            if ca is None:
                raise click.ClickException(
                    f"{client.server} has no Secret {secrets.NAMESPACE}/{secrets.CA.name}: cloudcore makes it when it "
                    "first starts"
                )
            kept = None if new else await secrets.find(client, secrets.TOKEN)
    except KubeError as error:
        raise click.ClickException(str(error)) from error
    certificate, key = der(ca)
    if kept is not None:
        text = secrets.read_token(kept)
        try:
            expiry(text, certificate, key)
        except BadToken as error:
            click.echo(f"Secret {secrets.NAMESPACE}/{secrets.TOKEN}: {error}; this is a new one", err=True)
        else:
            return text
    return mint_token(certificate, key, expires_at=time.time() + ttl_s)
