"""What this node's devices are, as far as twins and mappers need to know: a small entry per device, the models whole.

The declarations themselves stay in the store and are read again when a mapper is to get one, so that thousands of
devices cost an edge box little memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from dmi import (
    ConfigError,
    Device,
    DeviceId,
    DeviceModel,
    ModelId,
    NodeName,
    device_from_crd,
    merge_model,
    model_from_crd,
)
from dmi.types import PIN
from dmi.wire import encode_device, encode_model, fingerprint

__all__ = ["Catalog", "Declaration", "Entry"]

logger = logging.getLogger(__name__)

_MAX_SHAPES: Final = 1024


class Entry(Struct, frozen=True):
    """One device. While `problem` says something, no mapper can run the device as it is declared."""

    protocol: str = ""
    model: ModelId = ModelId("")
    properties: Mapping[str, str] | None = None
    """Property → type, lower case; an empty type where the model does not know it. None: could not be read so far."""
    digest: bytes = b""
    """Of what a mapper gets; empty while there is a problem."""
    problem: str = ""
    mapper: str = ""
    """The only mapper that may run it; empty: any of its protocol."""


class Declaration(Struct, frozen=True):
    """A device as its mapper gets it: model defaults merged in."""

    device: Device
    model: DeviceModel
    digest: bytes
    encoded: bytes
    """The device as it goes over a socket."""


class Catalog:
    def __init__(self, node: NodeName) -> None:
        self._node = node
        self._entries: dict[DeviceId, Entry] = {}
        self._models: dict[ModelId, DeviceModel] = {}
        self._encoded_models: dict[ModelId, bytes] = {}
        self._broken_models: dict[ModelId, str] = {}
        self._shapes: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(self._entries)

    def __contains__(self, device: object) -> bool:
        return device in self._entries

    def get(self, device: DeviceId) -> Entry | None:
        return self._entries.get(device)

    def of_protocol(self, protocol: str) -> list[DeviceId]:
        return [device for device, entry in self._entries.items() if entry.protocol == protocol]

    def encoded_model(self, model: ModelId) -> bytes:
        """As it goes over a socket; empty where there is none."""
        return self._encoded_models.get(model, b"")

    def users(self, model: ModelId) -> list[DeviceId]:
        return [device for device, entry in self._entries.items() if entry.model == model]

    def put_model(self, model: ModelId, body: bytes) -> None:
        self.drop_model(model)
        try:
            with _declaration_errors(model):
                declared = model_from_crd(_decode(body))
                self._encoded_models[model] = encode_model(declared)
                self._models[model] = declared
        except ConfigError as error:
            self._broken_models[model] = str(error)

    def drop_model(self, model: ModelId) -> None:
        self._models.pop(model, None)
        self._encoded_models.pop(model, None)
        self._broken_models.pop(model, None)

    def put_device(self, device: DeviceId, body: bytes) -> Entry:
        """Take a declaration, or take it again after its model changed."""
        entry = self._entries[device] = self._read(body, self._entries.get(device) or Entry())
        return entry

    def drop_device(self, device: DeviceId) -> None:
        self._entries.pop(device, None)

    def declaration(self, body: bytes) -> Declaration:
        """
        Raises:
            ConfigError: It cannot be run as declared; the path is the one in the YAML.
        """
        with _declaration_errors("a device"):
            return self._merge(device_from_crd(_decode(body)))

    def _merge(self, device: Device) -> Declaration:
        if not device.protocol:
            raise ConfigError("spec.protocol.protocolName", "is missing")
        if not device.model:
            raise ConfigError("spec.deviceModelRef.name", "is missing")
        model = self._models.get(device.model_id)
        if model is None:
            if problem := self._broken_models.get(device.model_id):
                raise ConfigError("", f"model {device.model_id}: {problem}")
            raise ConfigError("spec.deviceModelRef.name", f"model {device.model_id} is not on node {self._node}")
        merged = merge_model(device, model)
        encoded = encode_device(merged)
        return Declaration(merged, model, fingerprint(encoded, self._encoded_models[device.model_id]), encoded)

    def _read(self, body: bytes, before: Entry) -> Entry:
        try:
            with _declaration_errors("a device"):
                device = device_from_crd(_decode(body))
        except ConfigError as error:
            # What was known stays: a mapper goes on with the last declaration that could be run.
            return msgspec.structs.replace(before, digest=b"", problem=str(error))
        digest, problem, config = b"", "", device.protocol_config
        try:
            with _declaration_errors(device.id):
                declaration = self._merge(device)
                digest, config = declaration.digest, declaration.device.protocol_config
        except ConfigError as error:
            problem = str(error)
        return Entry(
            protocol=device.protocol,
            model=device.model_id,
            properties=self._shape(device),
            digest=digest,
            problem=problem,
            mapper=str(config.get(PIN, "")),
        )

    def _shape(self, device: Device) -> Mapping[str, str]:
        """Devices of one kind share one mapping."""
        model = self._models.get(device.model_id)
        types = {p.name: p.type.lower() for p in model.properties} if model else {}
        shape = tuple((p.name, types.get(p.name, "")) for p in device.properties)
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        return self._shapes.setdefault(shape, dict(shape))


@contextlib.contextmanager
def _declaration_errors(what: str) -> Iterator[None]:
    """A declaration that trips a codec is a bad declaration: it must keep no other from its mapper, nor edge core from
    starting.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        logger.exception("%s could not be read", what)
        raise ConfigError("", f"cannot be read: {error!r}") from error


def _decode(body: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError("", f"not a JSON object: {error}") from error
