"""Who pays our own invoices and subscriptions, and what they charge: our items, and nobody else's."""

import uuid
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import ANNIVERSARY, Ledger

RUN = Decimal("0.10")


async def late(ledger: Ledger, units: int) -> datetime:
    """Cancel the plan now, and record units used before that; only our own invoice can charge them."""
    await ledger.use("runs", 100)
    used_at = ledger.world.billing.clock.now()
    await ledger.advance(minutes=5)
    await ledger.cancel()
    await ledger.work()
    await record(ledger, units, used_at)
    return used_at


async def record(ledger: Ledger, units: int, used_at: datetime) -> None:
    request = usage_pb2.RecordUsageRequest(
        account_id=ledger.account_id, event_id=uuid.uuid4().hex, meter="runs", quantity=units
    )
    request.occurred_at.FromDatetime(used_at)
    assert (await ledger.world.billing.usage.RecordUsage(request)).billable == units


async def hours(ledger: Ledger, count: int) -> None:
    """Let hours pass in which the worker runs every quarter of an hour."""
    await ledger.world.advance(timedelta(hours=count), ledger.work, apart=timedelta(minutes=15))


async def test_the_subscription_s_card_pays_for_late_usage_after_its_end(tiers: Ledger) -> None:
    (subscription,) = await tiers.at_stripe()
    await late(tiers, 7)
    await hours(tiers, 4)
    last = (await tiers.invoices())[-1]
    assert (last["status"], last["total"]) == ("paid", 70)
    assert last["default_payment_method"] == subscription["default_payment_method"]
    assert await tiers.differences() == []


async def test_the_customer_s_default_pays_if_the_subscription_s_card_is_gone(tiers: Ledger) -> None:
    (subscription,) = await tiers.at_stripe()
    await tiers.world.sandbox.call("POST", f"/v1/payment_methods/{subscription['default_payment_method']}/detach")
    await late(tiers, 7)
    await tiers.give_card()
    await hours(tiers, 4)
    last = (await tiers.invoices())[-1]
    assert (last["status"], last["default_payment_method"]) == ("paid", None)


async def test_any_attached_card_pays_before_nobody_does(tiers: Ledger) -> None:
    (subscription,) = await tiers.at_stripe()
    await tiers.world.sandbox.call("POST", f"/v1/payment_methods/{subscription['default_payment_method']}/detach")
    attached = await tiers.world.sandbox.call(
        "POST", "/v1/payment_methods/pm_card_visa/attach", customer=subscription["customer"]
    )
    await late(tiers, 7)
    await hours(tiers, 4)
    last = (await tiers.invoices())[-1]
    assert (last["status"], last["default_payment_method"]) == ("paid", attached["id"])


async def test_without_any_card_the_invoice_is_made_all_the_same(tiers: Ledger) -> None:
    (subscription,) = await tiers.at_stripe()
    await tiers.world.sandbox.call("POST", f"/v1/payment_methods/{subscription['default_payment_method']}/detach")
    await late(tiers, 7)
    await hours(tiers, 4)
    last = (await tiers.invoices())[-1]
    assert (last["status"], last["total"], last["attempt_count"]) == ("open", 70, 1)


async def test_what_others_left_pending_is_not_on_our_invoice(tiers: Ledger) -> None:
    await late(tiers, 35)
    (subscription,) = await tiers.at_stripe()
    stranger = await tiers.world.sandbox.call(
        "POST", "/v1/invoiceitems", customer=subscription["customer"], amount=70_000, currency="usd"
    )
    await hours(tiers, 4)
    last = (await tiers.invoices())[-1]
    assert (last["status"], Decimal(last["total"]) / 100) == ("paid", 35 * RUN)
    left = await tiers.world.sandbox.call("GET", f"/v1/invoiceitems/{stranger['id']}")
    assert left["invoice"] is None
    assert await tiers.differences() == []


@pytest.mark.parametrize("path", ["/v1/invoices", "/v1/invoices/*/add_lines", "/v1/invoices/*"])
@pytest.mark.parametrize("kind", ["unavailable", "broken"])
async def test_no_failure_on_the_way_to_our_invoice_charges_twice(tiers: Ledger, kind: str, path: str) -> None:
    """Each write of the way, made or not made, without an answer: the repeat finds what there is."""
    await late(tiers, 7)
    for does_it in (False, True):
        more = {"does_it": does_it} if kind == "broken" else {}
        await tiers.world.sandbox.fault(kind, method="POST", path=path, count=1, **more)
    await hours(tiers, 30)
    mine = [one for one in await tiers.invoices() if one["metadata"].get("usage_report")]
    assert [(one["status"], one["total"]) for one in mine if one["total"]] == [("paid", 70)]
    assert await tiers.charged_by_meters() == 7 * RUN
    assert await tiers.differences() == []


async def test_an_invoice_whose_note_was_lost_holds_up_no_later_item(tiers: Ledger) -> None:
    """The worker dies between the release and the note, and the invoice is final when the next item comes."""
    used_at = await late(tiers, 7)
    await tiers.world.advance(timedelta(minutes=10), tiers.work, apart=timedelta(minutes=5))
    first = (await tiers.invoices())[-1]
    await tiers.world.sandbox.call("POST", f"/v1/invoices/{first['id']}/finalize")
    reports = tables.usage_reports
    lost = {"state": "itemised", "closed_at": None, "next_attempt_at": used_at}
    await tiers.world.execute(sa.update(reports).where(reports.c.state == "invoiced").values(lost))
    await record(tiers, 3, used_at)
    await hours(tiers, 4)
    mine = [one for one in await tiers.invoices() if one["metadata"].get("usage_report")]
    assert [(one["status"], one["total"]) for one in mine] == [("paid", 70), ("paid", 30)]
    assert {row.state for row in await tiers.world.rows(reports)} == {"invoiced"}


async def test_pay_as_you_go_is_paid_by_the_card_of_the_last_subscription(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    customer = await _customer_with_an_attached_card(ledger)
    await ledger.switch(on=True)
    await ledger.use("credits", 50)
    made = (await ledger.at_stripe())[-1]
    assert made["customer"] == customer
    assert made["default_payment_method"]
    await ledger.advance(days=35)
    assert [(one["status"], one["total"]) for one in await ledger.invoices() if one["total"]] == [("paid", 400)]


async def test_pay_as_you_go_without_any_card_is_still_made_if_the_catalog_allows_it(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.switch(on=True)
    (made,) = await ledger.at_stripe()
    assert made["default_payment_method"] is None


async def _customer_with_an_attached_card(ledger: Ledger) -> str:
    """Switch on and off once, so that there is a customer, and attach a card that is nobody's default."""
    await ledger.switch(on=True)
    await ledger.switch(on=False)
    (made,) = await ledger.at_stripe()
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{made['id']}")
    await ledger.world.deliver_new()
    await ledger.world.sandbox.call("POST", "/v1/payment_methods/pm_card_visa/attach", customer=made["customer"])
    return str(made["customer"])
