"""A real kubectl against the API of a test."""

import asyncio
import os
import sysconfig
from pathlib import Path

from kubetwin.apiserver import ApiServer

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"


async def kubectl(api: ApiServer, home: Path, *arguments: str) -> str:
    """What it prints when it must succeed."""
    env = {**os.environ, "KUBECONFIG": str(api.kubeconfig), "HOME": str(home), "KUBECACHEDIR": str(home / "cache")}
    process = await asyncio.create_subprocess_exec(
        KUBECTL, *arguments, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
