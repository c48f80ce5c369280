"""Server processes killed under load: acknowledged requests are stored exactly once, and nothing else is stored."""

import asyncio
from pathlib import Path

import pytest

from tests.billing_svc import processes
from tests.faults import loads, runs

pytestmark = pytest.mark.long


async def test_a_killed_server_loses_and_doubles_nothing(database_url: str, run: runs.Run, tmp_path: Path) -> None:
    await loads.prepare(database_url)
    load, rng, kills = loads.Load(run, loads.callers_of(run)), run.rng(), run.times(2, 40)
    async with processes.servers(database_url, tmp_path, 2) as started:
        async with loads.working(load, started):
            for n in range(kills):
                await asyncio.sleep(rng.uniform(0.05, 0.6))
                victim = rng.choice(started)
                await victim.kill()
                await victim.start()
                load.count(kills=n + 1)
        load.count(kills=kills)
    assert run.figures["calls"] > 50 * kills, "the load was too light to tell anything"
    await loads.assert_kept(load, database_url)
