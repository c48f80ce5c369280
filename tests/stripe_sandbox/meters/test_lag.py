"""Accepted is not counted: a meter's events count after a while, on drafts, previews, changes and sums."""

import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.stripe_sandbox.billing import Billing, amounts, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

MINUTE = 60


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        yield made


async def counted(billing: Billing) -> int:
    """Return the units that the meter has."""
    now = await billing.now()
    start = now - now % MINUTE
    summaries = await billing.api.billing.meters.event_summaries.list_async(
        billing.offer.meter,
        {"customer": billing.customer, "start_time": start - 3600, "end_time": start + MINUTE},
    )
    return int(summaries.data[0].aggregated_value)


async def test_without_a_lag_usage_counts_at_once(billing: Billing) -> None:
    await billing.use(3)
    assert await counted(billing) == 3


async def test_the_sums_of_a_meter_lag(billing: Billing) -> None:
    delays = await billing.control("delays", {"meters": 5 * MINUTE})
    assert delays == {"drafts": 3600, "meters": 5 * MINUTE, "search": 60}
    await billing.use(3)
    await billing.advance(4 * MINUTE)
    assert await counted(billing) == 0
    await billing.advance(MINUTE)
    assert await counted(billing) == 3


async def test_a_draft_counts_at_its_finalisation_what_the_meter_has_by_then(billing: Billing) -> None:
    made = await billing.subscribe()
    ends = made.items.data[0].current_period_end
    await billing.control("delays", {"meters": 30 * MINUTE})
    await billing.advance_to(ends)
    await billing.use(7, timestamp=ends - 1)
    await billing.advance(40 * MINUTE)
    await billing.use(100, timestamp=ends - 1)
    await billing.advance(30 * MINUTE)
    assert amounts((await billing.invoices())[-1]) == [(7 * 50, 7), (2000, 1)]


async def test_what_a_change_bills_misses_what_was_accepted_just_before(billing: Billing) -> None:
    made = await billing.subscribe()
    metered = made.items.data[1]
    await billing.control("delays", {"meters": 20})
    await billing.use(400)
    await billing.api.subscriptions.update_async(
        made.id,
        {"items": [{"id": metered.id, "deleted": True}], "proration_behavior": "always_invoice"},
    )
    assert [one.total for one in await billing.invoices() if one.total] == [2000]
    await billing.advance(MINUTE)
    assert await counted(billing) == 400, "the meter has them, and no line ever bills them"


async def test_a_fault_lets_single_events_lag(billing: Billing) -> None:
    await billing.control(
        "faults", {"kind": "meter_lag", "path": "/v1/billing/meter_events", "seconds": 1800, "skip": 1, "count": 1}
    )
    for units in (1, 10, 100):
        await billing.use(units)
    assert await counted(billing) == 101
    await billing.advance(30 * MINUTE)
    assert await counted(billing) == 111


async def test_only_the_lag_of_a_meter_may_be_longer_than_a_caller_waits(billing: Billing) -> None:
    answer = await billing.sandbox.http.post("/_sandbox/faults", json={"kind": "delay", "seconds": 1800})
    assert answer.status_code == 400
