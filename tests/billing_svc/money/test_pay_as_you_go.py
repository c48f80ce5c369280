"""Pay-as-you-go on kalshibook, switched on and off: an allowance each month, every credit beyond it charged once."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.v1 import decision_pb2, subscription_pb2
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions.dealing import NOW

CREDIT = Decimal("0.008")
DENIED = decision_pb2.DECISION_DENIED


@pytest.fixture
def catalog_name() -> str:
    return "kalshibook"


async def test_on_off_and_on_again_around_a_month_s_end_charges_each_unit_once(ledger: Ledger) -> None:
    """Off takes effect at the month's end; on in the next month creates a new subscription with a new allowance."""
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 1_250)).billable == 250
    await ledger.switch(on=False)
    # Usage without a check is recorded all the same, on terms that do not charge it.
    assert (await ledger.use("credits", 500)).billable == 0
    assert (await ledger.check("credits")).decision == DENIED
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 125)).billable == 125
    await ledger.switch(on=False)
    month_end = (await ledger.told()).quota_period_end.ToDatetime(tzinfo=ledger.world.billing.clock.now().tzinfo)
    await ledger.until(month_end + timedelta(hours=2))
    assert await ledger.charged() == 375 * CREDIT
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 1_500)).billable == 500
    month_end = (await ledger.told()).quota_period_end.ToDatetime(tzinfo=month_end.tzinfo)
    await ledger.until(month_end + timedelta(hours=2))
    assert await ledger.charged() == (375 + 500) * CREDIT
    assert await ledger.differences() == []


async def test_to_and_fro_on_a_bought_plan_mints_no_allowance(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    assert (await ledger.use("credits", 3_900)).billable == 0
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 225)).billable == 125
    await ledger.switch(on=False)
    assert (await ledger.check("credits")).decision == DENIED
    await ledger.advance(days=2)
    await ledger.switch(on=True)
    check = await ledger.check("credits")
    assert (check.used, check.included, check.remaining) == (4_125, 4_000, 0)
    assert (await ledger.use("credits", 250)).billable == 250
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(30), 30 + 375 * CREDIT]
    assert await ledger.differences() == []


async def press(ledger: Ledger, button: str, **fields: Any) -> None:  # noqa: ANN401 - the form's
    """Open the portal through the service, and press a button there."""
    request = subscription_pb2.CreatePortalSessionRequest(account_id=ledger.account_id)
    url = (await ledger.world.billing.subscriptions.CreatePortalSession(request)).url
    answer = await ledger.world.sandbox.http.post(
        f"{url}/{button}", data=fields, headers={"Accept": "application/json"}
    )
    assert answer.is_success, answer.text
    await ledger.world.deliver_new()


async def test_cancelled_in_the_portal_the_plan_stays_until_then_and_pay_as_you_go_is_off_afterwards(
    ledger: Ledger,
) -> None:
    subscription_id = await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await press(ledger, "cancel", subscription=subscription_id)
    told = await ledger.told()
    assert (told.plan, told.pay_as_you_go, told.cancel_at) == ("project", True, told.period_end)
    assert told.cancel_at_period_end
    assert await ledger.as_told() == await ledger.as_at_stripe()
    assert (await ledger.use("credits", 4_125)).billable == 125
    await ledger.over_the_period_end()
    told = await ledger.told()
    assert (told.plan, told.pay_as_you_go, told.status) == ("free", False, subscription_pb2.STATUS_CANCELED)
    # No usage of the new month is charged.
    await ledger.use("credits", 1_000)
    assert (await ledger.check("credits")).decision == DENIED
    assert await ledger.totals() == [Decimal(30), 125 * CREDIT]
    assert await ledger.differences() == []


async def test_a_cancellation_in_the_portal_that_is_taken_back_there(ledger: Ledger) -> None:
    subscription_id = await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await press(ledger, "cancel", subscription=subscription_id)
    await press(ledger, "renew", subscription=subscription_id)
    assert await ledger.as_told() == await ledger.as_at_stripe()
    await ledger.use("credits", 4_125)
    await ledger.over_the_period_end()
    told = await ledger.told()
    assert (told.plan, told.pay_as_you_go) == ("project", True)
    assert await ledger.totals() == [Decimal(30), 30 + 125 * CREDIT]


async def test_a_plan_is_bought_over_pay_as_you_go_while_its_usage_is_not_reported(ledger: Ledger) -> None:
    """Each credit on the terms of its time: 250 beyond the free thousand, then 125 beyond the project's 4,000."""
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 1_250)).billable == 250
    await ledger.buy(plan="project")
    assert (await ledger.use("credits", 4_000)).billable == 0
    assert (await ledger.check("credits")).decision == DENIED
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 125)).billable == 125
    await ledger.work()
    await ledger.over_the_period_end()
    assert await ledger.charged() == 30 + 30 + 375 * CREDIT
    assert [one["status"] for one in await ledger.at_stripe()] == ["canceled", "active"]
    assert await ledger.differences() == []


async def test_after_a_cancellation_pay_as_you_go_has_the_default_plan_s_units_once(ledger: Ledger) -> None:
    """The month that begins with the cancellation has the default plan's thousand, once."""
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 4_125)).billable == 125
    told = await ledger.cancel(NOW)
    assert (told.plan, told.pay_as_you_go) == ("free", False)
    await ledger.give_card()
    await ledger.switch(on=True)
    assert (await ledger.use("credits", 1_250)).billable == 250
    await ledger.advance(days=62)
    assert await ledger.charged() == 30 + 375 * CREDIT
    assert await ledger.differences() == []
