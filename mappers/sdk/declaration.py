"""A device and its model → what the runtime runs, and what is wrong with it. Pure; nothing here touches a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from dmi.errors import ConfigError, ConversionError
from dmi.types import PIN, Config, Device, DeviceModel, DeviceProperty, ModelProperty
from mappers.sdk.driver import AnyDriver, Property
from mappers.sdk.keys import PLAIN_REPORTS, ReportKeys
from mappers.sdk.limits import value_range
from mappers.sdk.schedule import MIN_CYCLE_S
from mappers.sdk.settings import decode_settings, setting_names

__all__ = ["Declaration", "check_driver", "declare"]

_VISITOR: Final = "visitors.configData"
_LONG_CYCLE_MS: Final = 24 * 3600 * 1000
"""Longer ones are warned about: upstream counted nanoseconds once, and many samples still do (DMI contract 3.5)."""


class Declaration(Struct, frozen=True):
    """One device as it is to be run. What cannot run is left out and named."""

    device: Device
    model: DeviceModel | None = None
    config: Any = None
    """The driver's protocol struct; None: the device cannot run, `problem` says why."""
    problem: str = ""
    properties: Mapping[str, Property[Any]] = {}
    keys: Mapping[str, ReportKeys] = {}
    """Of the properties that say something about their reports."""
    problems: Mapping[str, str] = {}
    """Property name → why it cannot run, starting with the path below `spec.properties[]`."""
    warnings: tuple[str, ...] = ()
    """What is odd but harmless, such as settings that no one reads."""

    def reason(self) -> str:
        """Everything that is wrong, in one line; empty when all is well."""
        if self.problem:
            return self.problem
        return "; ".join(f"property {name}: {problem}" for name, problem in self.problems.items())

    def errors(self) -> list[str]:
        """Everything that is wrong, one entry each, with the path as in the YAML."""
        if self.problem:
            return [self.problem]
        index = {p.name: i for i, p in reversed(list(enumerate(self.device.properties)))}
        return [f"spec.properties[{index[name]}].{problem}" for name, problem in self.problems.items()]


def check_driver(driver: AnyDriver) -> None:
    """Refuse a driver that would take the runtime's own visitor keys away from it.

    Raises:
        ConfigError: The path names the field.
    """
    for name in sorted(setting_names(driver.visitor_config) & setting_names(ReportKeys)):
        raise ConfigError(
            f"{type(driver).__name__}.visitor_config.{name}",
            "is a visitor key that the runtime reads for every protocol: name the driver's own differently",
        )


def declare(
    driver: AnyDriver, device: Device, model: DeviceModel | None, previous: Declaration | None = None
) -> Declaration:
    """Check and type a device's declaration. A property that did not change since `previous` stays the same object."""
    if model is None:
        return _broken(device, f"spec.deviceModelRef.name: model {device.model_id!r} is not known here", None)
    try:
        given, unknown = _settings(driver.protocol_config, device.protocol_config, "spec.protocol.configData")
        with _Prefix("spec.protocol.configData"):
            config = driver.check_config(given)
            odd = list(driver.config_warnings(given))
    except ConfigError as error:
        return _broken(device, str(error), model)
    warnings = [f"spec.protocol.configData.{key}: is not used by {driver.protocol}" for key in unknown if key != PIN]
    warnings += [f"spec.protocol.configData.{key}: {problem}" for key, problem in odd]
    warnings += _odd_cycles(device)
    models = {p.name: p for p in model.properties}
    properties: dict[str, Property[Any]] = {}
    keys: dict[str, ReportKeys] = {}
    problems: dict[str, str] = {}
    for index, declared in enumerate(device.properties):
        if declared.name in properties or declared.name in problems:
            warnings.append(
                f"spec.properties[{index}].name: {declared.name!r} is declared before; the first one counts"
            )
            continue
        try:
            known = previous.properties.get(declared.name) if previous else None
            property_, report_keys, unknown = _property(driver, declared, models.get(declared.name), known)
        except ConfigError as error:
            problems[declared.name] = str(error)
            continue
        properties[declared.name] = property_
        if report_keys != PLAIN_REPORTS:
            keys[declared.name] = report_keys
        warnings += [f"spec.properties[{index}].{_VISITOR}.{key}: is not used by {driver.protocol}" for key in unknown]
        try:
            value_range(property_.model)
        except ConversionError as error:
            warnings.append(f"spec.properties[{index}].name: what is reported is not checked: the model's {error}")
    return Declaration(device, model, config, "", properties, keys, problems, tuple(warnings))


def _odd_cycles(device: Device) -> Iterator[str]:
    cycles = [("spec.stateReport.reportCycle", device.state_report_cycle_ms)]
    for index, p in enumerate(device.properties):
        cycles.append((f"spec.properties[{index}].collectCycle", p.collect_cycle_ms))
        cycles.append((f"spec.properties[{index}].reportCycle", p.report_cycle_ms))
    for path, cycle_ms in cycles:
        if cycle_ms > _LONG_CYCLE_MS:
            yield f"{path}: {cycle_ms} is {cycle_ms / _LONG_CYCLE_MS:.0f} days: cycles are in milliseconds"
        elif 0 < cycle_ms < MIN_CYCLE_S * 1000:
            yield f"{path}: {cycle_ms} ms is shorter than any cycle here: it is {MIN_CYCLE_S * 1000:g} ms"


def _broken(device: Device, problem: str, model: DeviceModel | None) -> Declaration:
    return Declaration(device, model, problem=problem, problems={p.name: problem for p in device.properties})


def _property(
    driver: AnyDriver, declared: DeviceProperty, model: ModelProperty | None, known: Property[Any] | None
) -> tuple[Property[Any], ReportKeys, tuple[str, ...]]:
    if model is None:
        raise ConfigError("name", f"the model has no property {declared.name!r}")
    if model.type == "STREAM":
        raise ConfigError("name", "the model declares a STREAM, which has no value to read")
    keys, others = _settings(ReportKeys, declared.visitor.config, _VISITOR)
    if keys.deadband and model.type not in ("INT", "FLOAT", "DOUBLE"):
        raise ConfigError(f"{_VISITOR}.deadband", f"is for numbers, and the property is {model.type}: leave it out")
    own = {key: declared.visitor.config[key] for key in others}
    visitor, unknown = _settings(driver.visitor_config, own, _VISITOR)
    with _Prefix(_VISITOR):
        visitor = driver.resolve(visitor, model)
    if known is not None and known.visitor == visitor and known.model == model:
        return known, keys, unknown
    return Property(declared.name, visitor, model), keys, unknown


def _settings(type_: type[Struct], config: Config, path: str) -> tuple[Any, tuple[str, ...]]:
    with _Prefix(path):
        return decode_settings(config, type_)


class _Prefix:
    """Completes the path of a `ConfigError` raised in the block. Anything else a driver raises there is a bug of the
    driver, and becomes a `ConfigError` too, because it must not take the other devices down."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            path = f"{self._path}.{error.path}" if error.path else self._path
            raise ConfigError(path, error.problem) from None
        if isinstance(error, Exception | SystemExit):
            raise ConfigError(self._path, f"the driver failed on it: {error!r}") from error
