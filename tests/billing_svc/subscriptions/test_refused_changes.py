"""Changes that Stripe refuses, and what a repeat of them does; what a change costs with discounts, taxes and credit."""

import pytest

from billing.v1 import subscription_pb2
from billing_svc.catalog import loading
from billing_svc.platform.database import tables
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import catalog_sync
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, Dealing

CATALOG = """
catalog: tiers
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}}
  small:
    name: Small
    prices:
      monthly: {amount: "10.00", interval: month}
    limits: {runs: {included: 100, beyond: charge, unit_price: "1"}}
  big:
    name: Big
    prices:
      monthly: {amount: "40.00", interval: month}
    limits: {runs: {included: 1000, beyond: charge, unit_price: "2"}}
"""


async def publish(world: World, text: str = CATALOG) -> None:
    catalog = loading.load_text(text, "tiers")
    billing = world.billing
    await catalog_sync.apply(
        billing.transactions, world.stripe, catalog, "operator:test", billing.clock, lambda _line: None
    )


@pytest.fixture
async def deal(world: World) -> Dealing:
    await publish(world)
    return Dealing(world)


async def latest_invoice(deal: Dealing) -> dict[str, object]:
    (latest, *_) = await deal.world.sandbox.all("/v1/invoices")
    return latest


async def test_a_preview_says_what_the_invoice_will_say(deal: Dealing) -> None:
    """With a discount, a tax and credit of the customer's, which are not in the lines."""
    sandbox = deal.world.sandbox
    subscription_id = await deal.buy(plan="big")
    await deal.advance(days=5)
    credit = await deal.change(plan="small")
    assert cents(credit.total) < 0
    await sandbox.call("POST", "/v1/coupons", id="fifth", percent_off=20, duration="forever")
    await sandbox.call("POST", f"/v1/subscriptions/{subscription_id}", **{"discounts[0][coupon]": "fifth"})
    await sandbox.control("POST", "tax", {"percent": 10})
    await deal.advance(days=5)
    preview = await deal.change(plan="big", preview=True, request_id="")
    changed = await deal.change(plan="big", proration_at=preview.proration_at)
    invoice = await latest_invoice(deal)
    totals = preview.invoice_totals
    assert changed.invoice_totals == totals
    assert cents(totals.subtotal) == sum(cents(line.amount) for line in preview.lines) == invoice["subtotal"]
    assert cents(totals.discount) == sum(one["amount"] for one in invoice["total_discount_amounts"])  # type: ignore[attr-defined]  # JSON
    assert cents(totals.tax) == sum(one["amount"] for one in invoice["total_taxes"]) > 0  # type: ignore[attr-defined]  # as above
    assert cents(preview.total) == cents(totals.total) == invoice["total"]
    assert 0 < cents(totals.credit) == cents(totals.total) - cents(totals.amount_due)
    assert cents(totals.amount_due) == invoice["amount_due"]
    request = subscription_pb2.PreviewCostRequest(account_id="org_1", with_next_invoice=True)
    coming = (await deal.world.billing.subscriptions.PreviewCost(request)).next_invoice
    assert (coming.subtotal.amount, coming.discount.amount, coming.total.amount) == ("40.00", "8.00", "35.20")
    request.plan = "small"
    refusal = await refusals.refused(deal.world.billing.subscriptions.PreviewCost(request))
    assert (refusal.reason, refusal.fields) == ("INVALID_REQUEST", ("with_next_invoice",))
    at_end = await deal.change(AT_PERIOD_END, plan="small", preview=True, request_id="")
    assert (at_end.total.amount, at_end.invoice_totals.discount.amount) == ("8.80", "2.00")


def cents(money: object) -> int:
    return round(float(money.amount) * 100)  # type: ignore[attr-defined]  # a message


@pytest.mark.parametrize(("currency", "shown"), [("kwd", "30.000"), ("isk", "30.00"), ("jpy", "30")])
async def test_a_change_in_any_currency_is_answered(world: World, currency: str, shown: str) -> None:
    await publish(world, CATALOG.replace("usd", currency).replace('.00"', '"'))
    deal = Dealing(world)
    await deal.buy(plan="small")
    preview = await deal.change(plan="big", preview=True, request_id="")
    assert (preview.total.amount, preview.total.currency) == (shown, currency)
    changed = await deal.change(plan="big", proration_at=preview.proration_at, request_id="r1")
    assert await deal.change(plan="big", proration_at=preview.proration_at, request_id="r1") == changed
    assert changed.total == preview.total


@pytest.mark.parametrize("days", [5, 35])
async def test_a_refused_change_is_judged_by_the_present_when_it_is_repeated(deal: Dealing, days: int) -> None:
    await deal.buy(plan="small")
    await deal.give_card("declines")
    refusal = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert (refusal.reason, refusal.metadata["stripe_code"]) == ("PAYMENT_FAILED", "card_declined")
    # The sandbox's card gives no reason of a bank.
    assert "decline_code" not in refusal.metadata
    await deal.give_card("works")
    await deal.advance(days=days)
    preview = await deal.change(plan="big", preview=True, request_id="")
    changed = await deal.change(plan="big", request_id="r1")
    assert changed.total == preview.total
    assert changed.proration_at.seconds >= preview.proration_at.seconds
    assert (await latest_invoice(deal))["total"] == cents(preview.total)
    assert changed.subscription.plan == "big"
    assert await deal.change(plan="big", request_id="r1") == changed


async def test_a_change_that_another_call_of_the_request_forgot_is_answered_again(deal: Dealing) -> None:
    """Two calls of a request: the first is refused, and forgets the target while the second makes the change."""
    subscription_id = await deal.buy(plan="small")
    database, requests = deal.world.billing.transactions, tables.change_requests

    async def forget(method: str, path: str) -> int | None:
        if method == "POST" and path == f"/v1/subscriptions/{subscription_id}":
            (row,) = await deal.world.rows(requests)
            asked = request_ids.CallerRequest(row.account_id, row.request_id, row.kind, row.content)
            await database.run(lambda conn: request_ids.judge_again(conn, asked, row.target))
        return None

    deal.world.sandbox.faults.before = forget
    changed = await deal.change(plan="big", request_id="r1")
    deal.world.sandbox.faults.clear()
    assert await deal.change(plan="big", request_id="r1") == changed


async def test_a_refused_call_leaves_what_a_later_call_has_judged(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.give_card("declines")
    await refusals.refused(deal.change(plan="big", request_id="r1"))
    (row,) = await deal.world.rows(tables.change_requests)
    asked = request_ids.CallerRequest(row.account_id, row.request_id, row.kind, row.content)
    database = deal.world.billing.transactions
    await database.run(lambda conn: request_ids.set_target(conn, asked, {"subscription_id": "later"}))
    await database.run(lambda conn: request_ids.judge_again(conn, asked, {"subscription_id": "earlier"}))
    (row,) = await deal.world.rows(tables.change_requests)
    assert row.target == {"subscription_id": "later"}


async def test_a_change_of_unknown_outcome_is_not_made_a_day_later_for_its_first_instant(deal: Dealing) -> None:
    subscription_id = await deal.buy(plan="small")

    async def lost(method: str, path: str) -> int | None:
        return 503 if method == "POST" and path == f"/v1/subscriptions/{subscription_id}" else None

    deal.world.sandbox.faults.before = lost
    assert (await refusals.refused(deal.change(plan="big", request_id="r1"))).reason == "STRIPE_UNAVAILABLE"
    deal.world.sandbox.faults.clear()
    await deal.advance(days=10)
    preview = await deal.change(plan="big", preview=True, request_id="")
    changed = await deal.change(plan="big", request_id="r1")
    assert (changed.total, (await latest_invoice(deal))["total"]) == (preview.total, cents(preview.total))


async def test_the_answer_of_a_change_is_given_again_when_its_preview_is_old(deal: Dealing) -> None:
    await deal.buy(plan="small")
    preview = await deal.change(plan="big", preview=True, request_id="")
    changed = await deal.change(plan="big", proration_at=preview.proration_at, request_id="r1")
    await deal.advance(hours=2)
    again = await deal.change(plan="big", proration_at=preview.proration_at, request_id="r1")
    assert (again.total, again.lines) == (changed.total, changed.lines)
    refusal = await refusals.refused(deal.change(plan="small", proration_at=preview.proration_at, request_id="r2"))
    assert (refusal.reason, refusal.fields) == ("INVALID_REQUEST", ("proration_at",))


async def test_an_archived_price_is_named_and_a_new_one_is_sold_by_the_same_request(deal: Dealing) -> None:
    await deal.buy(plan="small")
    (price,) = await deal.world.rows(
        tables.stripe_prices,
        tables.stripe_prices.c.lookup_key == "tiers_big_monthly",
        tables.stripe_prices.c.is_current,
    )
    await deal.world.sandbox.call("POST", f"/v1/prices/{price.price_id}", active="false")
    for timing in (1, AT_PERIOD_END):
        refusal = await refusals.refused(deal.change(timing, plan="big", request_id=f"r{timing}"))
        assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "PRICE_ARCHIVED")
        named = {name: refusal.metadata[name] for name in ("plan", "price", "stripe_object")}
        assert named == {"plan": "big", "price": "monthly", "stripe_object": price.price_id}
        assert "plan big" in refusal.message
    checkout = subscription_pb2.CreateCheckoutRequest(account_id="org_2", plan="big", request_id="r1")
    refusal = await refusals.refused(deal.world.billing.subscriptions.CreateCheckout(checkout))
    assert (refusal.reason, refusal.metadata["plan"]) == ("PRICE_ARCHIVED", "big")
    await publish(deal.world)
    assert (await deal.change(plan="big", request_id="r1")).subscription.plan == "big"
    assert (await deal.world.billing.subscriptions.CreateCheckout(checkout)).url


async def test_without_a_card_the_same_request_is_good_after_one_is_added(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.give_card("none")
    refusal = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "PAYMENT_METHOD_REQUIRED")
    assert refusal.metadata["account_id"] == "org_1"
    assert "CreatePortalSession" in refusal.message
    await deal.give_card("works")
    assert (await deal.change(plan="big", request_id="r1")).subscription.plan == "big"


async def test_a_bank_that_wants_the_customer_gets_a_page_and_the_change_is_made_there(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.give_card("requires_action")
    before = len(await deal.world.sandbox.all("/v1/invoices"))
    refusal = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "PAYMENT_ACTION_REQUIRED")
    assert refusal.metadata["account_id"] == "org_1"
    assert refusal.metadata["expires_at"] > deal.world.billing.clock.now().isoformat()
    assert (await deal.told()).plan == "small"
    # A repeat before the payment gives the same page, and makes no second invoice.
    again = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert again.metadata == refusal.metadata
    assert len(await deal.world.sandbox.all("/v1/invoices")) == before + 1
    paid = await deal.world.sandbox.http.post(f"{refusal.metadata['payment_url']}/pay")
    assert paid.status_code in {200, 303}, paid.text
    changed = await deal.change(plan="big", request_id="r1")
    assert changed.subscription.plan == "big"
    invoice = await latest_invoice(deal)
    assert (invoice["id"], invoice["status"]) == (refusal.metadata["invoice_id"], "paid")
    assert cents(changed.total) == invoice["total"]
    assert await deal.change(plan="big", request_id="r1") == changed
    assert len(await deal.world.sandbox.all("/v1/invoices")) == before + 1


async def test_a_payment_that_nobody_confirmed_leaves_all_as_it_was_and_may_be_tried_again(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.give_card("requires_action")
    first = await refusals.refused(deal.change(plan="big", request_id="r1"))
    await deal.advance(days=2)
    assert (await deal.told()).plan == "small"
    second = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert second.reason == "PAYMENT_ACTION_REQUIRED"
    assert second.metadata["invoice_id"] != first.metadata["invoice_id"]
    statuses = {one["id"]: one["status"] for one in await deal.world.sandbox.all("/v1/invoices")}
    assert (statuses[first.metadata["invoice_id"]], statuses[second.metadata["invoice_id"]]) == ("void", "open")
    await deal.give_card("works")
    await deal.advance(days=2)
    assert (await deal.change(plan="big", request_id="r1")).subscription.plan == "big"
