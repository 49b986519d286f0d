"""A node that the cloud does not let in tries again every few seconds, for days perhaps: it says so once."""

import asyncio
import logging
from pathlib import Path

import pytest
from picows import WSCloseCode

from edgecore.config import EdgeCoreConfig
from edgecore.edgehub import dialling, hub
from tests.edgecore.hub_world import Events, Told
from tests.edgecore.peers import NODE, FakeCloud


async def test_the_same_refusal_is_said_once_and_its_end_too(
    config: EdgeCoreConfig,
    cloud: FakeCloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hub, "STABLE_AFTER_S", 0.5)
    monkeypatch.setattr(dialling, "FIRST_RETRY_S", 0.11)
    monkeypatch.setattr(dialling, "MAX_RETRY_S", 0.12)
    caplog.set_level(logging.INFO, logger="edgecore.edgehub.hub")
    told = Told()
    caplog.handler.addFilter(told)
    reason = f"node {NODE} is revoked"
    async with Events(config.modules.edge_hub, tmp_path) as events, asyncio.timeout(20):
        for _ in range(4):
            await events.connected.get()
            assert cloud.connection is not None
            cloud.connection.hang_up(WSCloseCode.POLICY_VIOLATION, reason)
            await events.lost.get()
        await told.until("which lets it in again")
    lines = [record.getMessage() for record in caplog.records]
    assert sum(reason in line for line in lines) == 1
    assert sum("connected to" in line for line in lines) == 2
