"""RSS of every process of a running path with nothing to do: no device declared, the channel connected over TLS, the
mapper registered. VmRSS, shared library pages included, a while after every process was restarted.
"""

from __future__ import annotations

import time

from benchmarks.figures import figure, rss_mib
from tests.e2e.harness import running_demo, wait_for

SETTLE_S = 5.0
REGISTERED = ": registered "
"""What a mapper logs each time an edge core has taken its registration."""


def run(seconds: float) -> None:  # noqa: ARG001 - the same signature as every benchmark
    with running_demo() as demo:
        demo.kubectl("delete", "devices,devicemodels", "--all", "-A")
        for name in ("mapper-modbus", "edgecore", "cloudcore", "apiserver"):
            demo.kill(name)
        before = demo.log("mapper-modbus").count(REGISTERED)
        for name in ("apiserver", "cloudcore", "edgecore", "mapper-modbus"):
            demo.restart(name)
        wait_for(lambda: demo.log("mapper-modbus").count(REGISTERED) > before, within_s=30, what="the mapper registers")
        time.sleep(SETTLE_S)
        for name in ("edgecore", "cloudcore", "mapper-modbus", "apiserver"):
            figure(f"memory.idle_rss.{name}", rss_mib(demo.pid(name)), "MiB")
