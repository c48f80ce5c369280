"""`reconcile --fix` and money: it charges what is missing, and nothing twice."""

from datetime import UTC, datetime
from decimal import Decimal

import sqlalchemy as sa

from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import ANNIVERSARY, Ledger


async def test_billing_periods_that_are_not_the_quota_s_are_compared_as_they_are(ledger: Ledger) -> None:
    """Signed up on a 31st: quota periods end on the 31st or 30th, Stripe's periods after February on the 28th."""
    await ledger.sell(ANNIVERSARY)
    await ledger.until(datetime(2027, 1, 31, 12, tzinfo=UTC))
    await ledger.use("credits", 1)
    await ledger.until(datetime(2027, 2, 10, 12, tzinfo=UTC))
    await ledger.switch(on=True)
    await ledger.give_card()
    for month, day, credits_used in ((3, 5, 60), (3, 29, 7), (4, 5, 30), (4, 29, 9)):
        await ledger.until(datetime(2027, month, day, 12, tzinfo=UTC))
        await ledger.use("credits", credits_used)
        await ledger.work()
        assert await ledger.differences(fix=True) == []
    # The quota period of April is over; Stripe's period that began within it is not.
    await ledger.until(datetime(2027, 5, 10, 12, tzinfo=UTC))
    assert await ledger.differences(fix=True) == []
    await ledger.until(datetime(2027, 6, 2, 12, tzinfo=UTC))
    assert await ledger.charged_by_meters() == (50 + 7 + 20 + 9) * Decimal("0.10")
    assert await ledger.differences(fix=True) == []
    assert {row.state for row in await ledger.world.rows(tables.usage_reports)} == {"sent"}


async def late_item(ledger: Ledger) -> str:
    """Let six runs miss their invoice, so that an item waits for the next invoice; returns the subscription's id."""
    subscription_id = await ledger.buy()
    await ledger.use("runs", 200)
    await ledger.until_period_end(hours=-1)
    await ledger.use("runs", 6)

    async def away(_method: str, path: str) -> int | None:
        return 503 if path.startswith("/v1/billing/meter_events") else None

    ledger.world.sandbox.faults.before = away
    await ledger.until_period_end(hours=0)
    await ledger.advance(hours=30)
    ledger.world.sandbox.faults.clear()
    await ledger.advance(hours=2)
    assert await waiting_items(ledger) == [300]
    return subscription_id


async def waiting_items(ledger: Ledger) -> list[int]:
    return [one["amount"] for one in await ledger.world.sandbox.all("/v1/invoiceitems") if not one["invoice"]]


async def test_an_item_waits_for_an_invoice_that_never_comes(ledger: Ledger) -> None:
    """Someone cancels in the dashboard without a last invoice: the item gets its own invoice."""
    subscription_id = await late_item(ledger)
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}", prorate="false")
    await ledger.work()
    await ledger.advance(hours=3)
    await ledger.advance(hours=2)
    assert await waiting_items(ledger) == []
    assert await ledger.totals() == [Decimal(20), Decimal(20), 6 * Decimal("0.50")]
    assert {one["status"] for one in await ledger.invoices()} == {"paid"}
    assert await ledger.differences() == []


async def test_a_reconciliation_has_such_an_item_invoiced_too(ledger: Ledger) -> None:
    """The settlement after the subscription's end did not run."""
    subscription_id = await late_item(ledger)
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}", prorate="false")
    await ledger.world.deliver_new()
    await ledger.world.execute(sa.update(tables.subscriptions).values(settle_at=None))
    await ledger.advance(hours=3)
    assert [kind for kind, _ in await ledger.differences()] == ["usage: uninvoiced"]
    assert await ledger.differences(fix=True) == []
    await ledger.advance(hours=2)
    assert await ledger.totals() == [Decimal(20), Decimal(20), 6 * Decimal("0.50")]
    assert await ledger.differences() == []


async def test_what_a_meter_has_that_was_switched_off_is_not_taken_for_lost(ledger: Ledger) -> None:
    await ledger.buy()
    await ledger.use("runs", 206)
    await ledger.over_the_period_end()
    await ledger.use("runs", 203)
    await ledger.advance(hours=1)
    (meter,) = await ledger.world.sandbox.all("/v1/billing/meters")
    await ledger.world.sandbox.call("POST", f"/v1/billing/meters/{meter['id']}/deactivate")
    await ledger.advance(hours=1)
    assert await ledger.differences(fix=True) == []
    await ledger.world.sandbox.call("POST", f"/v1/billing/meters/{meter['id']}/reactivate")
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(20), 20 + 6 * Decimal("0.50"), 20 + 3 * Decimal("0.50")]
    assert await ledger.differences(fix=True) == []
