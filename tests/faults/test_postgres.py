"""Postgres killed, stopped and started again, and its sessions ended at random, all under load."""

import asyncio
import signal
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from billing_svc.platform.database import embedded, migrating
from tests.billing_svc import processes
from tests.faults import loads, runs

pytestmark = pytest.mark.long

# How many sessions are ended between two stops of the whole server.
TERMINATIONS = 5


def terminate_one(url: str, choice: float) -> None:
    """Terminate a session of the service."""
    conninfo = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        if pids := sorted(row[0] for row in connection.execute(query)):
            connection.execute("SELECT pg_terminate_backend(%s)", [pids[int(choice * len(pids))]])


async def test_postgres_killed_under_load_loses_and_doubles_nothing(
    own_postgres: embedded.EmbeddedPostgres, run: runs.Run, tmp_path: Path
) -> None:
    url = own_postgres.start()
    await asyncio.to_thread(migrating.upgrade, url)
    await loads.prepare(url)
    load, rng, ends = loads.Load(run, loads.callers_of(run)), run.rng(), run.times(2, 30)
    async with processes.servers(url, tmp_path, 1) as started:
        async with loads.working(load, started):
            for n in range(ends):
                for _ in range(TERMINATIONS):
                    await asyncio.sleep(rng.uniform(0, 0.2))
                    await asyncio.to_thread(terminate_one, url, rng.random())
                await asyncio.to_thread(loads.end_and_start, own_postgres, (signal.SIGKILL, signal.SIGQUIT)[n % 2])
                await load.more()
                load.count(ends_of_Postgres=n + 1, sessions_ended=(n + 1) * TERMINATIONS)
        load.count()
    await loads.assert_kept(load, url)
