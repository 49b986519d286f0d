"""A mapper that takes no device: `DIRECTORY PROTOCOL`, until killed."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from dmi import ConfigError, Device, DeviceId, DeviceModel, ModelId, Twin, UnknownDevice
from dmi.client import EdgeCoreClient
from dmi.ports import MapperInfo
from dmi.server import serve_mapper


class Refusing:
    async def apply_device(self, device: Device) -> None:
        raise ConfigError("spec.protocol.configData.line", "there is no such line on this machine")

    async def remove_device(self, device: DeviceId) -> None:
        pass

    async def apply_model(self, model: DeviceModel) -> None:
        pass

    async def remove_model(self, model: ModelId) -> None:
        pass

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        raise UnknownDevice(device)


async def main(directory: Path, protocol: str) -> None:
    own = directory / "refusing.sock"
    async with serve_mapper(Refusing(), own):
        edgecore = EdgeCoreClient(directory / "dmi.sock")
        await edgecore.register(MapperInfo("refusing", protocol, str(own)))
        sys.stdout.write("registered\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
