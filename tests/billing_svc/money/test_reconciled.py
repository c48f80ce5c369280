"""What `reconcile --fix` does about money: it charges what is missing, and nothing twice."""

from datetime import UTC, datetime
from decimal import Decimal

from billing_svc.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.money.test_hostile_changes import ANNIVERSARY


async def test_billing_periods_that_are_not_the_quota_s_are_compared_as_they_are(ledger: Ledger) -> None:
    """Signed up on a 31st: the quota's months end on the 31st and 30th, Stripe's on each 28th, after February."""
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
    # The quota's April is over, and Stripe's period that began within it is not.
    await ledger.until(datetime(2027, 5, 10, 12, tzinfo=UTC))
    assert await ledger.differences(fix=True) == []
    await ledger.until(datetime(2027, 6, 2, 12, tzinfo=UTC))
    assert await ledger.charged_by_meters() == (50 + 7 + 20 + 9) * Decimal("0.10")
    assert await ledger.differences(fix=True) == []
    assert {row.state for row in await ledger.world.rows(tables.usage_reports)} == {"sent"}
