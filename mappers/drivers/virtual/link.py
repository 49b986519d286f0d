"""A link to a virtual device: requests take as long, fail as often and bring as much nonsense as they are told to."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from dmi.types import device_id, split_id
from dmi.values import Value
from mappers.drivers.virtual.plant import Plant, VirtualDevice
from mappers.drivers.virtual.replay import Tables
from mappers.drivers.virtual.settings import VirtualVisitor
from mappers.drivers.virtual.waveforms import Sampler, Table, follow, sampler
from mappers.sdk import (
    ConversionError,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    Property,
    Push,
    ReadResult,
    epoch_ms,
)

__all__ = ["VirtualLink"]

logger = logging.getLogger(__name__)

_PLANS: Final = 64
_GARBAGE: Final[dict[str, Value]] = {
    "INT": "\x00garbage",
    "FLOAT": math.nan,
    "DOUBLE": math.inf,
    "BOOLEAN": 7,
    "STRING": b"\xff\xfe",
    "BYTES": "garbage",
}

_Plan = tuple[tuple[tuple[str, Sampler], ...], bool]
"""(name, how to get its value), and whether only switches are among them."""


class VirtualLink:
    """One link. Reads and writes may overlap, as on a device that takes several requests at once."""

    def __init__(self, device: VirtualDevice, plant: Plant, tables: Tables) -> None:
        self._device = device
        self._plant = plant
        self._tables = tables
        self._random = random.Random(f"{device.config.seed} {device.id}")  # noqa: S311  # faults, not secrets
        self._plans: dict[tuple[Property[VirtualVisitor], ...], _Plan] = {}
        self._pushing: asyncio.Task[None] | None = None

    async def read_many(self, properties: Sequence[Property[VirtualVisitor]]) -> Mapping[str, ReadResult]:
        key = tuple(properties)
        plan = self._plans.get(key)
        if plan is None:
            plan = await self._plan(key)
        samplers, only_switches = plan
        device = self._device
        device.requests += 1
        if not device.is_healthy and not only_switches:
            await self._suffer()
            if device.faults.garbage:
                return {p.name: _GARBAGE[p.model.type] if not p.visitor.fault else self._read_switch(p) for p in key}
        now_s, held = epoch_ms() / 1000, device.held
        results: dict[str, ReadResult] = {}
        for name, sample in samplers:
            try:
                results[name] = held[name] if name in held else sample(now_s)
            except ConversionError as error:
                results[name] = error
        return results

    async def write(self, property_: Property[VirtualVisitor], value: Value) -> None:
        visitor = property_.visitor
        self._device.requests += 1
        if visitor.fault:
            self._target(visitor).switch(visitor.fault, value)
            return
        if not self._device.is_healthy:
            await self._suffer()
        self._step_followers()
        self._device.write(property_.name, value)

    async def call(self, method: str, property_: Property[VirtualVisitor], value: Value) -> None:
        """`reset` lets the property go back to its waveform, `add` adds to it, any other method sets it."""
        name = property_.name
        match method.lower():
            case "reset":
                if not self._device.is_healthy:
                    await self._suffer()
                self._device.reset(name)
            case "add":
                present = (await self.read_many((property_,)))[name]
                if isinstance(present, Exception):
                    raise present
                if isinstance(present, str | bytes) or isinstance(value, str | bytes):
                    raise DeviceUnsupported(self._device.id, f"{name} is a {property_.model.type}: only numbers add up")
                await self.write(property_, present + value)
            case _:
                await self.write(property_, value)

    async def subscribe(self, properties: Sequence[Property[VirtualVisitor]], push: Push) -> Collection[str]:
        await self._stop_pushing()
        pushed = [p for p in properties if p.visitor.push]
        if pushed:
            self._pushing = asyncio.create_task(self._push(pushed, push), name=f"virtual push {self._device.id}")
        return {p.name for p in pushed}

    async def close(self) -> None:
        await self._stop_pushing()

    async def _stop_pushing(self) -> None:
        task, self._pushing = self._pushing, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _push(self, properties: Sequence[Property[VirtualVisitor]], push: Push) -> None:
        """Send each property on its own grid, those that are due together in one go, until cancelled."""
        groups: dict[int, list[Property[VirtualVisitor]]] = {}
        for p in properties:
            groups.setdefault(p.visitor.push_every, []).append(p)
        loop = asyncio.get_running_loop()
        due = {every_ms: loop.time() for every_ms in groups}
        while True:
            every_ms = min(due, key=lambda ms: due[ms])
            await asyncio.sleep(max(due[every_ms] - loop.time(), 0))
            due[every_ms] = max(due[every_ms] + every_ms / 1000, loop.time())
            try:
                push(await self.read_many(groups[every_ms]))
            except DeviceTimeout:
                continue  # a device that does not answer does not send either
            except DeviceUnreachable as error:
                push(dict.fromkeys((p.name for p in properties), error))
                return

    # values

    async def _plan(self, properties: tuple[Property[VirtualVisitor], ...]) -> _Plan:
        if len(self._plans) >= _PLANS:  # declarations that are no more
            self._plans.clear()
        samplers = tuple([(p.name, await self._sampler(p)) for p in properties])
        plan = self._plans[properties] = samplers, bool(properties) and all(p.visitor.fault for p in properties)
        return plan

    async def _sampler(self, property_: Property[VirtualVisitor]) -> Sampler:
        visitor, device = property_.visitor, self._device
        if visitor.fault:
            return lambda _: self._read_switch(property_)
        table = Table(())
        if visitor.waveform == "replay":
            try:
                table = await asyncio.to_thread(self._tables.table, visitor)
            except ConversionError as error:
                return _raising(error)
        started_s = device.started_s if device.started_s is not None else epoch_ms() / 1000
        seed = f"{device.config.seed}/{device.id}/{property_.name}"
        sample = sampler(visitor, property_.model, seed=seed, started_s=started_s, table=table)
        if not visitor.follows:
            return sample
        return lambda now_s: self._follow(property_, sample, now_s)

    def _follow(self, property_: Property[VirtualVisitor], start: Sampler, now_s: float) -> Value:
        """Where a property is on its way to the one it follows, which stands at what was written to it."""
        device, visitor = self._device, property_.visitor
        goal = device.held.get(visitor.follows)
        then_s, value = device.lags.get(property_.name, (now_s, float(start(now_s))))
        if isinstance(goal, str | bytes):
            raise ConversionError(f"visitors.configData.follows: {visitor.follows} is not a number")
        if goal is not None:
            value = follow(value, float(goal), max(now_s - then_s, 0.0), visitor.period / 1000)
        device.lags[property_.name] = (now_s, value)
        return round(value) if property_.model.type == "INT" else round(value, visitor.decimals)

    def _step_followers(self) -> None:
        """Before a goal moves, bring those that follow it to where they are by now."""
        now_s = epoch_ms() / 1000
        for properties, (samplers, _) in list(self._plans.items()):
            for property_, (_, sample) in zip(properties, samplers, strict=True):
                if property_.visitor.follows:
                    sample(now_s)

    # faults

    def _target(self, visitor: VirtualVisitor) -> VirtualDevice:
        if not visitor.device:
            return self._device
        namespace, _ = split_id(self._device.id)
        return self._plant.device(device_id(namespace, visitor.device))

    def _read_switch(self, property_: Property[VirtualVisitor]) -> Value:
        return self._target(property_.visitor).level(property_.visitor.fault)

    async def _suffer(self) -> None:
        """What a request goes through before it is answered.

        Raises:
            DeviceUnreachable: The device is offline.
            DeviceTimeout: This request gets no reply.
        """
        device = self._device
        faults, timeout_s = device.faults, device.config.timeout / 1000
        if faults.block:
            time.sleep(faults.block / 1000)  # noqa: ASYNC251  # the very fault that was asked for
        while device.faults.hang and not device.faults.offline:
            await device.changed()
        if device.faults.offline:
            raise DeviceUnreachable(device.id, "the virtual device is offline")
        delay_s = (faults.latency + (self._random.random() * faults.jitter if faults.jitter else 0)) / 1000
        silent = (faults.fail_every and device.requests % faults.fail_every == 0) or (
            faults.fail_rate and self._random.random() < faults.fail_rate
        )
        if silent or delay_s > timeout_s:
            await asyncio.sleep(timeout_s)
            raise DeviceTimeout(device.id, f"no reply in {device.config.timeout} ms")
        if delay_s:
            await asyncio.sleep(delay_s)


def _raising(error: ConversionError) -> Sampler:
    def sample(_: float) -> Value:
        raise error

    return sample
