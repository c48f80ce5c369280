"""Callers with short deadlines: a repeat finds out whether the first call was done."""

import asyncio
from pathlib import Path

import pytest

from tests.billing_svc import processes
from tests.faults import loads, runs

pytestmark = pytest.mark.long


async def test_a_storm_of_deadlines_tears_nothing_apart(database_url: str, run: runs.Run, tmp_path: Path) -> None:
    await loads.prepare(database_url)
    storm = loads.callers_of(run, deadline=lambda rng: rng.uniform(0.001, 0.05))
    load = loads.Load(run, storm)
    async with processes.servers(database_url, tmp_path, 2) as started:
        async with loads.working(load, started):
            for _ in range(round(run.seconds(3, 0.1))):
                await asyncio.sleep(1)
                load.count()
        load.count()
    await loads.assert_kept(load, database_url)
