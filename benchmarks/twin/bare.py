"""The least a gRPC server can do with a report: a bare grpc.aio server that parses the message and returns.

`python -m benchmarks.twin.bare SOCKET`, until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceServicer, add_DeviceManagerServiceServicer_to_server


class _Bare(DeviceManagerServiceServicer):
    async def ReportDeviceStatus(  # noqa: N802
        self,
        request: pb.ReportDeviceStatusRequest,  # noqa: ARG002 - parsed, and that is all
        context: Any,  # noqa: ARG002
    ) -> pb.ReportDeviceStatusResponse:
        return pb.ReportDeviceStatusResponse()


async def _serve(socket: str) -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_DeviceManagerServiceServicer_to_server(_Bare(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
