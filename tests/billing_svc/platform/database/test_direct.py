"""Statements that go straight to the driver behave in a transaction as all others do."""

import asyncio
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import errors
from billing_svc.platform.database import direct
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions as runners

_PID = direct.PreparedStatement("SELECT pg_backend_pid()")
_SLEEP = direct.PreparedStatement("SELECT 1 FROM pg_sleep(60)")
_ECHO = direct.PreparedStatement(
    "SELECT CAST(:a AS text), CAST(:b AS bigint), CAST(:c AS boolean), CAST(:d AS timestamptz), :a"
)
_DIVIDE = direct.PreparedStatement("SELECT 1 / CAST(:by AS integer)")
_LENGTH = direct.PreparedStatement("SELECT length(CAST(:text AS text)), CAST(:text AS text)")
# Undone with the transaction; what it was set to before is "".
_SET = direct.PreparedStatement("SELECT set_config('billing.test', :value, true)")
_SHOW = direct.PreparedStatement("SELECT current_setting('billing.test', true)")
_BEGAN = direct.PreparedStatement("SELECT transaction_timestamp()")

_OPEN_WINDOW = direct.PreparedStatement("INSERT INTO rate_windows VALUES (:account_id, now(), 0)")
_COUNT_WINDOWS = direct.PreparedStatement("SELECT count(*) FROM rate_windows")


@pytest.fixture
async def other(database_url: str) -> AsyncEngine:
    return engines.create_engine(database_url, role=None)


async def _terminate(engine: AsyncEngine, pid: int) -> None:
    async with engine.connect() as connection:
        await connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


async def test_values_and_rows_keep_their_types(transactions: runners.Transactions) -> None:
    at = datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC)
    values: dict[str, direct.Value] = {"a": "größer", "b": -(2**62), "c": False, "d": at}
    rows = await transactions.read(lambda conn: direct.fetch(conn, _ECHO, values))
    assert rows == [("größer", -(2**62), False, at, "größer")]
    nothing = dict.fromkeys(values)
    assert await transactions.read(lambda conn: direct.fetch(conn, _ECHO, nothing)) == [(None,) * 5]


async def test_a_parameter_and_a_row_larger_than_any_buffer_pass(transactions: runners.Transactions) -> None:
    text = "x" * 20_000_000
    rows = await transactions.read(lambda conn: direct.fetch(conn, _LENGTH, {"text": text}))
    assert rows == [(len(text), text)]


async def test_what_was_given_up_half_sent_keeps_no_lock(database_url: str, other: AsyncEngine) -> None:
    """While the connection is open, Postgres waits for the rest."""
    lone = engines.create_engine(database_url, pool_size=1, role=None)
    runner = runners.Transactions(lone)
    connected: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work(conn: AsyncConnection) -> None:
        connected.set_result((await direct.fetch(conn, _PID, {}))[0][0])
        await direct.fetch(conn, _LENGTH, {"text": "x" * 100_000_000})

    sending = asyncio.create_task(runner.look(work))
    pid = await connected
    sending.cancel()
    await asyncio.wait({sending})
    assert sending.cancelled()
    there = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
    async with asyncio.timeout(10), other.connect() as connection:
        while await connection.scalar(there, {"pid": pid}):
            pass  # each round is a query
    await lone.dispose()
    await other.dispose()


async def test_direct_and_other_statements_share_the_transaction(transactions: runners.Transactions) -> None:
    async def work(conn: AsyncConnection) -> tuple[object, object]:
        await direct.fetch(conn, _SET, {"value": "set"})
        seen = await conn.scalar(sa.text("SELECT current_setting('billing.test', true)"))
        return seen, (await direct.fetch(conn, _SHOW, {}))[0][0]

    assert await transactions.run(work) == ("set", "set")
    left = (await transactions.run(lambda conn: direct.fetch(conn, _SHOW, {})))[0][0]
    assert not left, "the transaction has ended"


async def test_reads_are_statements_of_their_own(transactions: runners.Transactions) -> None:
    async def is_one(conn: AsyncConnection) -> bool:
        return await direct.fetch(conn, _BEGAN, {}) == await direct.fetch(conn, _BEGAN, {})

    assert await transactions.run(is_one)
    assert not await transactions.read(is_one)
    assert not await transactions.look(is_one)
    assert await transactions.run(is_one), "a read leaves no trace on its connection"


async def test_a_look_keeps_what_it_wrote_whatever_ran_before(transactions: runners.Transactions) -> None:
    async def alone(conn: AsyncConnection) -> None:
        await direct.fetch(conn, _OPEN_WINDOW, {"account_id": "org_1"})

    async def after_an_ordinary_one(conn: AsyncConnection) -> None:
        await conn.execute(sa.text("SELECT 1"))
        await direct.fetch(conn, _OPEN_WINDOW, {"account_id": "org_2"})

    await transactions.look(alone)
    await transactions.look(after_an_ordinary_one)
    assert await transactions.read(lambda conn: direct.fetch(conn, _COUNT_WINDOWS, {})) == [(2,)]


async def test_statements_of_one_round_trip_run_in_order_and_stop_at_a_failure(
    transactions: runners.Transactions,
) -> None:
    async def work(conn: AsyncConnection) -> None:
        await direct.fetch(conn, _SET, {"value": "before"})
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with conn.begin_nested():
                await direct.fetch_each(conn, (_DIVIDE, {"by": 0}), (_SET, {"value": "after"}))
        found = await direct.fetch_each(conn, (_SHOW, {}), (_SET, {"value": "later"}), (_SHOW, {}))
        assert found == [[("before",)], [("later",)], [("later",)]]

    await transactions.run(work)


async def test_a_failure_undoes_the_transaction_and_leaves_the_connection_fit(
    transactions: runners.Transactions,
) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await transactions.run(lambda conn: direct.fetch(conn, _DIVIDE, {"by": 0}))
        assert await transactions.run(lambda conn: direct.fetch(conn, _DIVIDE, {"by": 1})) == [(1,)]


@pytest.mark.parametrize("kind", ["run", "read", "look"])
async def test_a_lost_connection_is_replaced_once(
    kind: str, transactions: runners.Transactions, other: AsyncEngine
) -> None:
    attempts = 0

    async def work(conn: AsyncConnection) -> int:
        nonlocal attempts
        attempts += 1
        pid = int((await direct.fetch(conn, _PID, {}))[0][0])
        if attempts == 1:
            await _terminate(other, pid)
        return int((await direct.fetch(conn, _PID, {}))[0][0])

    assert await {"run": transactions.run, "read": transactions.read, "look": transactions.look}[kind](work)
    assert attempts == 2
    await other.dispose()


async def test_connections_that_died_in_the_pool_are_not_noticed_by_callers(
    transactions: runners.Transactions, other: AsyncEngine
) -> None:
    all_are_out = asyncio.Barrier(engines.POOL_SIZE)

    async def occupy(conn: AsyncConnection) -> int:
        await all_are_out.wait()
        return int((await direct.fetch(conn, _PID, {}))[0][0])

    for pid in await asyncio.gather(*(transactions.run(occupy) for _ in range(engines.POOL_SIZE))):
        await _terminate(other, pid)
    await other.dispose()
    for _ in range(3 * engines.POOL_SIZE):
        assert await transactions.read(lambda conn: direct.fetch(conn, _DIVIDE, {"by": 1})) == [(1,)]


@pytest.mark.parametrize("kind", ["run", "look"])
async def test_a_statement_past_the_budget_is_stopped_and_its_connection_replaced(
    kind: str, database_url: str, other: AsyncEngine
) -> None:
    engine = engines.create_engine(database_url, pool_size=1, role=None)
    hurried = runners.Transactions(engine, budget_seconds=0.2)
    with pytest.raises(errors.Unavailable, match="took too long"):
        await (hurried.run if kind == "run" else hurried.look)(lambda conn: direct.fetch(conn, _SLEEP, {}))
    # Without the hurry: to connect anew takes longer on a busy machine.
    unhurried = runners.Transactions(engine)
    assert await unhurried.read(lambda conn: direct.fetch(conn, _DIVIDE, {"by": 1})) == [(1,)]
    async with other.connect() as connection:
        running = sa.text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'")
        assert await connection.scalar(running) == 0
    await engine.dispose()
    await other.dispose()
