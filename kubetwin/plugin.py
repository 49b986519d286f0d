"""`kubectl twin`: kubectl runs any `kubectl-twin` on PATH as its own subcommand. Here its commands are put together.

It asks kubectl itself for everything, so contexts, credentials and clusters are exactly the user's.
"""

from __future__ import annotations

import click

from kubetwin.twin import describe_command, get_command, history_command, set_command
from kubetwin.twin.options import Cluster, cluster_options
from kubetwin.why.command import why

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kubetwin")
@cluster_options
def main(cluster: Cluster) -> None:
    """Read, write and explain device twins in any cluster with KubeEdge's definitions.

    kubectl's --kubeconfig, --context and --namespace go behind the command: kubectl twin get -n plant
    """


for command in (get_command, set_command, history_command, describe_command, why):
    main.add_command(command)
