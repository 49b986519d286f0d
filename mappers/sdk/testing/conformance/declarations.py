"""Declarations change while the device runs, and some are wrong."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import msgspec

from dmi.types import DesiredSpec, Device, DeviceModel, ModelProperty, Visitor
from mappers.sdk.declaration import declare
from mappers.sdk.testing.conformance.bench import (
    CYCLE_MS,
    declared_of,
    expect_refusal,
    patience,
    prepared,
    run_subject,
    with_config,
    with_visitor,
)
from mappers.sdk.testing.conformance.parts import needs
from mappers.sdk.testing.subject import Subject


class Declarations:
    async def test_another_cycle_keeps_the_link(self, subject: Subject) -> None:
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        device = prepared(subject.device, cycle_ms=3_600_000)
        async with run_subject(subject, device=device) as run:
            await run.until_reads(first)
            links = run.watch.connects[run.id]
            await run.change(prepared(device, cycle_ms=CYCLE_MS))
            await subject.set_value(subject.readable, second)
            await run.until_reads(second)
            await run.until_read_again()
            assert run.watch.connects[run.id] == links, "another cycle made a new link"

    @needs("writable", "other_visitor")
    async def test_another_visitor_is_read_over_the_same_link(self, subject: Subject) -> None:
        await subject.set_value(subject.readable, subject.values[0])
        device = prepared(subject.device)
        async with run_subject(subject) as run:
            await run.until_reads(subject.values[0])
            links = run.watch.connects[run.id]
            await subject.set_value(subject.writable, subject.desired[0])
            await run.change(with_visitor(device, subject.readable, subject.other_visitor))
            await run.until_reads(subject.desired[0])
            await run.change(device)
            await run.until_reads(subject.values[0])
            await run.until_read_again()
            assert run.watch.connects[run.id] == links, "another visitor made a new link"

    @needs("other_config")
    async def test_another_protocol_config_reconnects_once(self, subject: Subject) -> None:
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        device = prepared(subject.device)
        async with run_subject(subject) as run:
            await run.until_reads(first)
            links = run.watch.connects[run.id]
            await run.change(with_config(device, subject.other_config))
            await subject.set_value(subject.readable, second)
            await run.until_reads(second)
            await run.until_read_again()
            made = run.watch.connects[run.id] - links
            assert made == 1, f"another protocol config made {made} links"
            assert run.watch.open_links == 1, f"{run.watch.open_links} links are open"

    @needs("wrong_settings")
    async def test_wrong_settings_are_refused_with_their_path(self, subject: Subject) -> None:
        device = prepared(subject.device)
        for key, value in subject.wrong_config.items():
            errors = declare(subject.driver, with_config(device, {key: value}), subject.model).errors()
            expect_refusal(errors, f"spec.protocol.configData.{key}", value)
        index = next(i for i, p in enumerate(device.properties) if p.name == subject.readable)
        for key, value in subject.wrong_visitor.items():
            wrong = with_visitor(device, subject.readable, {key: value})
            errors = declare(subject.driver, wrong, subject.model).errors()
            expect_refusal(errors, f"spec.properties[{index}].visitors.configData.{key}", value)
            async with run_subject(subject, device=wrong) as run:
                bad = subject.readable
                await run.until(lambda bad=bad: run.core.quality(run.id, bad) == "bad", f"{bad} is bad")  # type: ignore[misc]
                assert key in run.core.twins[run.id, bad].reported.reason
                if subject.writable and subject.writable != bad:
                    await run.until(
                        lambda: run.core.quality(run.id, subject.writable) == "good", f"{subject.writable} is good"
                    )

    @needs("discovery")
    async def test_what_is_discovered_can_be_declared(self, subject: Subject) -> None:
        declared = declared_of(subject)
        async with patience(subject, "discovery ends"):
            found = [device async for device in subject.driver.discover(declared.config)]
        assert found, "nothing was discovered, and the device is there"
        for proposal in found:
            properties = tuple(
                ModelProperty(p.name, p.type, p.access_mode, description=p.description) for p in proposal.properties
            )
            model = DeviceModel(subject.model.namespace, "discovered", properties)
            device = Device(
                subject.device.namespace,
                proposal.name,
                model="discovered",
                protocol=subject.driver.protocol,
                protocol_config=proposal.config,
                properties=tuple(
                    msgspec.structs.replace(
                        subject.device.properties[0],
                        name=p.name,
                        desired=DesiredSpec(),
                        visitor=Visitor(subject.driver.protocol, p.visitor),
                    )
                    for p in proposal.properties
                ),
            )
            result = declare(subject.driver, device, model)
            assert not result.errors(), f"discovered, and refused: {result.errors()}"
            assert not result.warnings, f"discovered, and warned about: {result.warnings}"
