"""Transactions while connections are lost, statements hang, and Postgres is away."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import errors
from billing_svc.platform.database import embedded
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions as runners
from tests import ports

_BACKEND = sa.text("SELECT pg_backend_pid()")
_COUNT = sa.text("SELECT count(*) FROM rows")
_INSERT = sa.text("INSERT INTO rows DEFAULT VALUES")


@pytest.fixture
async def rows(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE rows (id int GENERATED ALWAYS AS IDENTITY)"))


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[embedded.EmbeddedPostgres]:
    """A server that a test may stop."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        Path(name).chmod(0o711)
        with embedded.EmbeddedPostgres(Path(name) / "postgres", ports.free_port(), durable=False) as server:
            yield server


@pytest.fixture
async def own_engine(own_postgres: embedded.EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = engines.create_engine(own_postgres.start(), role=None)
    yield engine
    await engine.dispose()


@pytest.fixture
async def single(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection: who does not give it back is found out."""
    engine = engines.create_engine(database_url, pool_size=1, role=None)
    yield engine
    await engine.dispose()


async def _terminate(engine: AsyncEngine, pid: int) -> None:
    """End a backend, and return when it is gone."""
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


async def _select_one(connection: AsyncConnection) -> int:
    return int(await connection.scalar(sa.text("SELECT 1")) or 0)


async def _insert(connection: AsyncConnection) -> None:
    await connection.execute(_INSERT)


async def _pid(connection: AsyncConnection) -> int:
    return int(await connection.scalar(_BACKEND) or 0)


@pytest.mark.usefixtures("rows")
async def test_a_connection_lost_in_the_middle_is_replaced_once(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _insert(connection)
        if attempts == 1:
            await _terminate(engine, await _pid(connection))
        await _insert(connection)

    await transactions.run(work)
    assert attempts == 2
    assert await transactions.read(lambda connection: connection.scalar(_COUNT)) == 2


@pytest.mark.usefixtures("rows")
async def test_a_connection_lost_again_and_again_is_unavailable(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _terminate(engine, await _pid(connection))
        await _insert(connection)

    with pytest.raises(errors.Unavailable):
        await transactions.run(work)
    assert attempts == 1 + runners.LOST_CONNECTIONS_MAX
    assert await transactions.read(lambda connection: connection.scalar(_COUNT)) == 0


@pytest.mark.parametrize("kind", ["run", "read"])
async def test_connections_that_died_in_the_pool_are_not_noticed_by_callers(
    kind: str, engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    all_are_out = asyncio.Barrier(engines.POOL_SIZE)

    async def occupy(connection: AsyncConnection) -> int:
        await all_are_out.wait()
        return await _pid(connection)

    pids = await asyncio.gather(*(transactions.run(occupy) for _ in range(engines.POOL_SIZE)))
    assassin = engines.create_engine(engine.url.render_as_string(hide_password=False), role=None)
    for pid in pids:
        await _terminate(assassin, pid)
    await assassin.dispose()
    method = transactions.run if kind == "run" else transactions.read
    results = await asyncio.gather(*(method(_select_one) for _ in range(3 * engines.POOL_SIZE)))
    assert results == [1] * 3 * engines.POOL_SIZE


@pytest.mark.usefixtures("rows")
async def test_a_connection_lost_at_commit_is_unknown_and_not_repeated(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    """A deferred trigger runs within COMMIT, and ends its own backend there."""
    async with engine.begin() as connection:
        await connection.execute(
            sa.text(
                "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
            )
        )
        await connection.execute(
            sa.text(
                "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON rows DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION die()"
            )
        )
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _insert(connection)

    with pytest.raises(errors.Unavailable):
        await transactions.run(work)
    assert attempts == 1
    assert await transactions.read(_select_one) == 1


async def test_a_server_that_is_away_is_reported_at_once_and_found_again(
    own_postgres: embedded.EmbeddedPostgres, own_engine: AsyncEngine
) -> None:
    transactions = runners.Transactions(own_engine)
    assert await transactions.run(_select_one) == 1
    own_postgres.stop()
    began = time.monotonic()
    for method in (transactions.run, transactions.read):
        with pytest.raises(errors.Unavailable):
            await method(_select_one)
    assert time.monotonic() - began < 1
    own_postgres.start()
    assert await transactions.run(_select_one) == 1
    assert await transactions.read(_select_one) == 1


async def test_a_server_restarted_behind_the_pool_s_back_is_not_noticed(
    own_postgres: embedded.EmbeddedPostgres, own_engine: AsyncEngine
) -> None:
    transactions = runners.Transactions(own_engine)
    await asyncio.gather(*(transactions.run(_select_one) for _ in range(20)))
    own_postgres.stop()
    own_postgres.start()
    assert await asyncio.gather(*(transactions.run(_select_one) for _ in range(20))) == [1] * 20


async def test_a_backend_that_froze_costs_its_callers_the_budget_and_no_more(own_engine: AsyncEngine) -> None:
    """Only the backend is stopped: a server stopped as a whole would outlive a kill of the tests."""
    transactions = runners.Transactions(own_engine, budget_seconds=0.3)
    frozen = 0

    async def freeze(connection: AsyncConnection) -> None:
        nonlocal frozen
        frozen = await _pid(connection)
        os.kill(frozen, signal.SIGSTOP)
        await _select_one(connection)

    began = time.monotonic()
    try:
        with pytest.raises(errors.Unavailable):
            await transactions.run(freeze)
        assert time.monotonic() - began < 0.3 + runners.CLEANUP_SECONDS_MAX + 0.5
    finally:
        os.kill(frozen, signal.SIGCONT)
    await transactions.drain()
    assert await transactions.run(_select_one) == 1


async def test_work_past_its_budget_is_ended_and_gives_its_connection_back(single: AsyncEngine) -> None:
    transactions = runners.Transactions(single, budget_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(errors.Unavailable, match="took too long"):
        await transactions.run(lambda connection: connection.execute(sa.text("SELECT pg_sleep(60)")))
    assert time.monotonic() - began < 1
    assert await transactions.run(_select_one) == 1
    active = sa.text("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")
    assert await transactions.read(lambda connection: connection.scalar(active)) == 0


async def test_a_statement_past_its_time_is_unavailable(database_url: str) -> None:
    engine = engines.create_engine(database_url, statement_seconds_max=0.1, role=None)
    transactions = runners.Transactions(engine)
    with pytest.raises(errors.Unavailable):
        await transactions.run(lambda connection: connection.execute(sa.text("SELECT pg_sleep(60)")))
    await engine.dispose()


@pytest.mark.usefixtures("rows")
async def test_a_lock_that_is_never_released_is_unavailable(database_url: str, engine: AsyncEngine) -> None:
    impatient = engines.create_engine(database_url, lock_seconds_max=0.1, role=None)
    transactions = runners.Transactions(impatient)
    async with engine.begin() as holder:
        await holder.execute(sa.text("LOCK TABLE rows"))
        with pytest.raises(errors.Unavailable):
            await transactions.run(_insert)
    await transactions.run(_insert)
    await impatient.dispose()


async def test_an_exhausted_pool_is_unavailable(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "POOL_WAIT_SECONDS_MAX", 0.1)
    engine = engines.create_engine(database_url, pool_size=1, role=None)
    transactions = runners.Transactions(engine)
    async with engine.connect():
        with pytest.raises(errors.Unavailable):
            await transactions.run(_select_one)
    assert await transactions.run(_select_one) == 1
    await engine.dispose()
