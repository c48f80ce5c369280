"""The split of a period by operation and by day."""

from datetime import timedelta

import pytest

from billing.v1 import usage_pb2
from tests import clocks
from tests.acceptance.accounts import START, Account


@pytest.fixture
def catalog_name() -> str:
    return "kalshibook"


async def split(account: Account, **fields: object) -> usage_pb2.MeterUsage:
    request = usage_pb2.GetUsageRequest(account_id=account.account_id, **fields)  # type: ignore[arg-type]
    [line] = (await account.billing.usage.GetUsage(request)).meters
    return line


async def test_split_adds_up_and_a_correction_counts_where_its_event_did(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("d1", operation="deltas", quantity=10)
    await account.record("d2", operation="deltas", quantity=1, occurred_at=START - timedelta(days=2))
    await account.record("b1", operation="orderbook", quantity=3)
    await account.record("m1", "credits", 100)
    # A repetition is no event of its own.
    await account.record("b1_again", operation="orderbook", retry_attempt=1)
    service_clock.advance(timedelta(days=1))
    await account.record("d3", operation="deltas", quantity=2)
    await account.correct("c1", "b1", 4)
    await account.correct("c2", "d2")
    line = await split(account, with_operations=True, with_days=True)
    assert [(one.operation, one.used, one.events) for one in line.by_operation] == [
        ("", 100, 1),
        ("deltas", 24, 3),
        ("orderbook", 11, 1),
    ]
    # The day of d2 stays with its event, and nothing of it is left.
    assert [(one.date, one.used, one.events) for one in line.by_day] == [
        ("2026-05-09", 0, 1),
        ("2026-05-11", 131, 3),
        ("2026-05-12", 4, 1),
    ]
    assert sum(one.used for one in line.by_operation) == sum(one.used for one in line.by_day) == line.used == 135


async def test_split_comes_only_when_asked_for(account: Account) -> None:
    await account.record("d1", operation="deltas")
    line = await split(account)
    assert (list(line.by_operation), list(line.by_day)) == ([], [])
    line = await split(account, with_days=True)
    assert (list(line.by_operation), len(line.by_day)) == ([], 1)
    line = await split(account, with_operations=True)
    assert (len(line.by_operation), list(line.by_day)) == (1, [])


async def test_split_is_of_one_period(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("d1", operation="deltas")
    service_clock.advance(timedelta(days=30))
    await account.record("d2", operation="markets")
    line = await split(account, with_operations=True, with_days=True)
    assert [(one.operation, one.used) for one in line.by_operation] == [("markets", 1)]
    line = await split(account, with_operations=True, with_days=True, period_containing=START)
    assert [(one.operation, one.used) for one in line.by_operation] == [("deltas", 2)]
    assert [one.date for one in line.by_day] == ["2026-05-11"]
