"""What is committed, what is repeated, and what becomes of work whose caller went away."""

import asyncio
import gc

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import errors
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions as runners

SECONDS_MAX = 10

pytestmark = pytest.mark.usefixtures("rows")


@pytest.fixture
async def rows(engine: AsyncEngine) -> None:
    """A table with the rows (1, 0) and (2, 0)."""
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE rows (id int PRIMARY KEY, n int NOT NULL)"))
        await connection.execute(sa.text("INSERT INTO rows VALUES (1, 0), (2, 0)"))


async def _add(connection: AsyncConnection, row: int, by: int = 1) -> None:
    await connection.execute(sa.text("UPDATE rows SET n = n + :by WHERE id = :id"), {"id": row, "by": by})


async def _values(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(sa.text("SELECT n FROM rows ORDER BY id")))


async def test_work_is_committed_and_its_result_returned(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    async def work(connection: AsyncConnection) -> str:
        await _add(connection, 1)
        return "done"

    assert await transactions.run(work) == "done"
    assert await _values(engine) == [1, 0]


async def test_an_error_of_the_work_undoes_it_and_arrives_unchanged(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    refusal = errors.AlreadySubscribed("no")

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        raise refusal

    with pytest.raises(errors.AlreadySubscribed) as caught:
        await transactions.run(work)
    assert caught.value is refusal
    assert await _values(engine) == [0, 0]


async def test_a_defect_is_neither_retried_nor_renamed(transactions: runners.Transactions) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(sa.text("SELECT no_such_column FROM rows"))

    with pytest.raises(sa.exc.ProgrammingError):
        await transactions.run(work)
    assert attempts == 1


async def test_work_that_goes_on_after_a_failed_statement_is_no_success(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    """Postgres answers COMMIT of a failed transaction with a silent ROLLBACK."""

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        with pytest.raises(sa.exc.IntegrityError):
            await connection.execute(sa.text("INSERT INTO rows VALUES (1, 0)"))

    with pytest.raises(RuntimeError, match="continued after a failed statement"):
        await transactions.run(work)
    assert await _values(engine) == [0, 0]


async def test_a_failed_statement_within_a_savepoint_harms_nothing(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        with pytest.raises(sa.exc.IntegrityError):
            async with connection.begin_nested():
                await connection.execute(sa.text("INSERT INTO rows VALUES (1, 0)"))

    await transactions.run(work)
    assert await _values(engine) == [1, 0]


async def test_reads_are_statements_of_their_own(transactions: runners.Transactions) -> None:
    async def work(connection: AsyncConnection) -> bool:
        clock = sa.text("SELECT transaction_timestamp()")
        return bool(await connection.scalar(clock) == await connection.scalar(clock))

    assert await transactions.run(work)
    assert not await transactions.read(work)
    assert await transactions.run(work), "a read leaves no trace on its connection"


async def test_what_is_kept_between_runs_is_denied_to_nobody(engine: AsyncEngine, database_url: str) -> None:
    """The only connection of a pool: to reads, which never take the kept one, and to those who wait in line."""
    async with asyncio.timeout(SECONDS_MAX):
        lone = engines.create_engine(database_url, pool_size=1, role=None)
        runner = runners.Transactions(lone, keep=True)

        async def add(connection: AsyncConnection) -> None:
            await _add(connection, 1)
            await asyncio.sleep(0.05)

        async def count(connection: AsyncConnection) -> int:
            return len((await connection.scalars(sa.text("SELECT n FROM rows"))).all())

        await runner.run(add)
        assert await runner.read(count) == 2
        await asyncio.gather(runner.run(add), runner.read(count), runner.run(add), runner.read(count), runner.run(add))
        assert await _values(engine) == [4, 0]
        await runner.drain()
        await lone.dispose()


@pytest.mark.parametrize("outer_seconds", [0.05, None])
async def test_a_budget_that_ends_takes_no_cancellation_of_another(
    engine: AsyncEngine, outer_seconds: float | None
) -> None:
    """As with `asyncio.timeout`: who cancels is told so, though the budget ends while that is carried out."""
    hurried = runners.Transactions(engine, budget_seconds=0.2)

    async def work(_connection: AsyncConnection) -> None:
        try:
            await asyncio.sleep(SECONDS_MAX)
        except asyncio.CancelledError:
            if outer_seconds is not None:
                await asyncio.sleep(SECONDS_MAX)  # until the budget ends too
            raise

    looking = asyncio.create_task(hurried.look(work))
    if outer_seconds is not None:
        await asyncio.sleep(outer_seconds)
        looking.cancel()
    await asyncio.wait({looking}, timeout=SECONDS_MAX)
    if outer_seconds is None:
        assert isinstance(looking.exception(), errors.Unavailable)
        assert not looking.cancelling()
    else:
        assert looking.cancelled()


async def test_what_fails_as_its_budget_ends_leaves_no_cancellation_behind(engine: AsyncEngine) -> None:
    hurried = runners.Transactions(engine, budget_seconds=0.05)

    async def work(_connection: AsyncConnection) -> None:
        try:
            await asyncio.sleep(SECONDS_MAX)
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    async def look() -> int:
        with pytest.raises(ZeroDivisionError):
            await hurried.look(work)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.create_task(look()) == 0


async def test_a_serialization_failure_repeats_the_whole_work(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> int:
        nonlocal attempts
        attempts += 1
        await connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        seen = await connection.scalar(sa.text("SELECT n FROM rows WHERE id = 1"))
        if attempts == 1:
            async with engine.begin() as rival:
                await _add(rival, 1, by=10)
        await _add(connection, 1)
        return int(seen or 0)

    assert await transactions.run(work) == 10
    assert attempts == 2
    assert await _values(engine) == [11, 0]


async def test_a_deadlock_is_resolved_by_repeating_the_victim(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    both_hold_one = asyncio.Barrier(2)
    attempts = 0

    async def swap(first: int, second: int) -> None:
        mine = 0

        async def work(connection: AsyncConnection) -> None:
            nonlocal attempts, mine
            attempts += 1
            mine += 1
            await _add(connection, first)
            if mine == 1:
                await both_hold_one.wait()
            await _add(connection, second)

        await transactions.run(work)

    await asyncio.gather(swap(1, 2), swap(2, 1))
    assert await _values(engine) == [2, 2]
    assert attempts == 3


async def test_a_lost_race_is_repeated_from_the_start(engine: AsyncEngine, transactions: runners.Transactions) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _add(connection, 1)
        if attempts < 3:
            raise runners.RetryTransaction

    await transactions.run(work)
    assert attempts == 3
    assert await _values(engine) == [1, 0]


async def test_a_race_that_is_always_lost_ends_in_lost_race(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _add(connection, 1)
        raise runners.RetryTransaction

    with pytest.raises(errors.LostRace):
        await transactions.run(work)
    assert attempts == runners.ATTEMPTS_MAX
    assert await _values(engine) == [0, 0]


async def test_a_cancelled_caller_does_not_undo_the_work(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        under_way.set()
        await go_on.wait()
        await _add(connection, 2)

    caller = asyncio.create_task(transactions.run(work))
    await under_way.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await _values(engine) == [0, 0]
    go_on.set()
    await transactions.drain()
    assert await _values(engine) == [1, 1]


@pytest.mark.parametrize("failure", [errors.AlreadySubscribed("no"), ValueError("a defect")])
async def test_the_failure_of_work_without_a_caller_is_taken(
    failure: Exception, engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        under_way.set()
        await go_on.wait()
        raise failure

    caller = asyncio.create_task(transactions.run(work))
    await under_way.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    await transactions.drain()
    del caller
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
    assert await _values(engine) == [0, 0]


async def test_many_callers_cancelled_at_random_moments_leave_whole_transactions(
    engine: AsyncEngine, transactions: runners.Transactions
) -> None:
    async def work(connection: AsyncConnection) -> None:
        await _add(connection, 1)
        await _add(connection, 2)

    callers = [asyncio.create_task(transactions.run(work)) for _ in range(40)]
    for number, caller in enumerate(callers):
        await asyncio.sleep(0.001 * (number % 3))
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    await transactions.drain()
    first, second = await _values(engine)
    # A caller that was cancelled before its first step never began.
    started = sum(not isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert first == second
    assert started <= first <= len(callers)
