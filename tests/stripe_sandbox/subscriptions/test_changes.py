import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, amounts, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

MONTH = 30 * DAY
"""April has thirty days."""


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 4, 1, tzinfo=dt.UTC)) as made:
        yield made


async def change(
    billing: Billing, made: stripe.Subscription, *items: dict[str, Any], **more: object
) -> stripe.Subscription:
    changed = await billing.api.subscriptions.update_async(made.id, {"items": list(items), **more})
    assert isinstance(changed, stripe.Subscription)
    return changed


def at(made: stripe.Subscription, seconds: int) -> int:
    """Return a time in the first period."""
    return made.items.data[0].current_period_start + seconds


async def test_an_upgrade_is_prorated_to_the_second_and_billed_at_once(billing: Billing) -> None:
    bigger = await billing.price(9900)
    made = await billing.subscribe({"price": billing.offer.base})
    await billing.advance_to(at(made, 12345))
    changed = await change(
        billing,
        made,
        {"id": made.items.data[0].id, "price": bigger},
        proration_behavior="always_invoice",
        proration_date=at(made, 12345),
    )
    # 2000 * 2579655 / 2592000 = 1990.47, and with 9900 it is 9852.85.
    invoice = (await billing.invoices())[-1]
    assert (invoice.status, amounts(invoice), invoice.amount_paid) == ("paid", [(-1990, 1), (9853, 1)], 7863)
    assert (changed.latest_invoice, invoice.billing_reason) == (invoice.id, "subscription_update")
    assert changed.items.data[0].current_period_end == made.items.data[0].current_period_end
    for line in invoice.lines.data:
        assert line.parent
        assert line.parent.subscription_item_details
        assert line.parent.subscription_item_details.proration
        assert (line.period.start, line.period.end) == (at(made, 12345), at(made, MONTH))


async def test_a_quantity_is_prorated_on_the_next_invoice(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base, "quantity": 2})
    await billing.advance_to(at(made, MONTH // 2))
    item = made.items.data[0].id
    await change(billing, made, {"id": item, "quantity": 5}, proration_date=at(made, MONTH // 2))
    await billing.advance_to(at(made, MONTH * 3 // 4))
    await change(billing, made, {"id": item, "quantity": 1}, proration_date=at(made, MONTH * 3 // 4))
    pending = (await billing.api.invoice_items.list_async({"customer": billing.customer, "pending": True})).data
    assert sorted(each.amount for each in pending) == [-2500, -2000, 500, 5000]
    assert all(each.proration for each in pending)
    await billing.advance_to(at(made, MONTH) + 3600)
    last = (await billing.invoices())[-1]
    assert (last.status, last.total) == ("paid", 2000 + 1000)


async def test_a_credit_beyond_the_invoice_is_kept_for_the_next(billing: Billing) -> None:
    smaller = await billing.price(100)
    made = await billing.subscribe({"price": billing.offer.base})
    await change(
        billing,
        made,
        {"id": made.items.data[0].id, "price": smaller},
        proration_behavior="always_invoice",
        proration_date=at(made, 0),
    )
    assert ((await billing.invoices())[-1].total, (await billing.invoices())[-1].status) == (-1900, "paid")
    await billing.advance_to(at(made, MONTH) + 3600)
    last = (await billing.invoices())[-1]
    assert (last.total, last.amount_due, last.starting_balance, last.ending_balance) == (100, 0, -1900, -1800)


async def test_without_prorations_the_next_invoice_has_the_new_price_only(billing: Billing) -> None:
    bigger = await billing.price(9900)
    made = await billing.subscribe()
    await billing.use(9)
    base, metered = made.items.data
    await change(
        billing,
        made,
        {"id": base.id, "price": bigger},
        {"id": metered.id, "deleted": True},
        proration_behavior="none",
    )
    await billing.advance_to(at(made, MONTH) + 3600)
    assert amounts((await billing.invoices())[-1]) == [(9900, 1)], "and the usage of what was removed is lost"


async def test_a_metered_item_that_is_removed_is_billed_and_one_that_is_added_counts_from_then(
    billing: Billing,
) -> None:
    made = await billing.subscribe()
    metered = made.items.data[1]
    await billing.use(10)
    await billing.advance(5 * DAY)
    await change(billing, made, {"id": metered.id, "deleted": True, "clear_usage": True})
    await billing.use(1000)
    await billing.advance(5 * DAY)
    changed = await change(billing, made, {"price": billing.offer.metered})
    assert changed.items.data[1].current_period_end == made.items.data[0].current_period_end
    await billing.use(3)
    await billing.advance_to(at(made, MONTH) + 3600)
    assert amounts((await billing.invoices())[-1]) == [(150, 3), (500, 10), (2000, 1)]


async def test_another_interval_begins_a_new_period_and_is_billed_at_once(billing: Billing) -> None:
    yearly = await billing.price(20000, "year")
    made = await billing.subscribe()
    base, metered = made.items.data
    await billing.use(4)
    await billing.advance_to(at(made, MONTH // 2))
    changed = await change(
        billing,
        made,
        {"id": base.id, "price": yearly},
        {"id": metered.id, "deleted": True},
        proration_date=at(made, MONTH // 2),
    )
    (item,) = changed.items.data
    assert (item.current_period_end - item.current_period_start) // DAY == 366, "2028 has a February 29"
    assert changed.billing_cycle_anchor == item.current_period_start
    assert amounts((await billing.invoices())[-1]) == [(-1000, 1), (200, 4), (20000, 1)]


async def test_the_cycle_can_begin_anew(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.use(4)
    await billing.advance_to(at(made, MONTH // 4))
    changed = await billing.api.subscriptions.update_async(
        made.id, {"billing_cycle_anchor": {"type": "now"}, "proration_date": at(made, MONTH // 4)}
    )
    assert amounts((await billing.invoices())[-1]) == [(-1500, 1), (200, 4), (2000, 1)]
    assert changed.items.data[1].current_period_start == changed.billing_cycle_anchor
    await billing.use(1)
    await billing.advance_to(changed.items.data[0].current_period_end + 3600)
    assert amounts((await billing.invoices())[-1]) == [(50, 1), (2000, 1)]


async def test_a_change_that_the_card_does_not_pay_can_fail_or_be_owed(billing: Billing) -> None:
    bigger = await billing.price(9900)
    made = await billing.subscribe({"price": billing.offer.base})
    await billing.card("declines")
    wanted = {"id": made.items.data[0].id, "price": bigger}
    with pytest.raises(stripe.CardError):
        await change(billing, made, wanted, proration_behavior="always_invoice", payment_behavior="error_if_incomplete")
    assert (await billing.subscription(made.id)).items.data[0].price.id == billing.offer.base
    assert await billing.types("customer.subscription.updated") == []
    changed = await change(billing, made, wanted, proration_behavior="always_invoice")
    assert (changed.status, changed.items.data[0].price.id) == ("past_due", bigger)


async def test_cancelling_now_bills_the_usage_and_gives_back_the_rest_if_it_is_told_to(billing: Billing) -> None:
    plain, final = await billing.subscribe(), await billing.subscribe()
    await billing.use(7)
    await billing.advance(15 * DAY)
    await billing.api.subscriptions.cancel_async(plain.id)
    assert len(await billing.invoices()) == 2
    await billing.api.invoice_items.create_async(
        {"customer": billing.customer, "subscription": final.id, "amount": 11, "currency": "usd"}
    )
    over = await billing.api.subscriptions.cancel_async(final.id, {"invoice_now": True, "prorate": True})
    last = (await billing.invoices())[-1]
    credit, item, usage = amounts(last)
    assert (credit[0] in {-1000, -999}, item, usage) == (True, (11, 1), (350, 7))
    assert (over.status, over.latest_invoice, last.status) == ("canceled", last.id, "paid")


async def test_a_preview_is_what_then_happens_and_changes_nothing(billing: Billing) -> None:
    bigger = await billing.price(9900)
    made = await billing.subscribe()
    await billing.use(6)
    await billing.advance_to(at(made, MONTH // 2))
    details = {
        "items": [{"id": made.items.data[0].id, "price": bigger}],
        "proration_behavior": "always_invoice",
        "proration_date": at(made, MONTH // 2),
    }
    preview = billing.api.invoices.create_preview_async
    seen = await preview({"subscription": made.id, "subscription_details": details})
    later = await preview(
        {"subscription": made.id, "subscription_details": {**details, "proration_behavior": "create_prorations"}}
    )
    recurring = await preview({"subscription": made.id, "subscription_details": details, "preview_mode": "recurring"})
    upcoming = await preview({"subscription": made.id})
    ending = await preview(
        {"subscription": made.id, "subscription_details": {"cancel_now": True, "proration_behavior": "none"}}
    )
    fresh = await preview({"customer": billing.customer, "subscription_details": {"items": [{"price": bigger}]}})
    assert (seen.status, seen.billing_reason, amounts(seen)) == ("draft", "upcoming", [(-1000, 1), (4950, 1)])
    assert amounts(later) == [(-1000, 1), (300, 6), (4950, 1), (9900, 1)]
    assert amounts(recurring) == [(300, 6), (9900, 1)]
    assert amounts(upcoming) == [(300, 6), (2000, 1)]
    assert amounts(ending) == [(300, 6)]
    assert amounts(fresh) == [(9900, 1)]
    assert len(await billing.invoices()) == 1
    assert (await billing.subscription(made.id)).to_dict() == made.to_dict()
    await change(
        billing,
        made,
        *details["items"],
        **{name: value for name, value in details.items() if name != "items"},  # type: ignore[misc] # put together above
    )
    assert amounts((await billing.invoices())[-1]) == amounts(seen)


async def test_there_is_no_next_invoice_of_a_subscription_that_is_over(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.api.subscriptions.cancel_async(made.id)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.invoices.create_preview_async({"subscription": made.id})
    assert (caught.value.code, caught.value.http_status) == ("invoice_upcoming_none", 404)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"items": []}, "items"),
        ({"items": [{"price": "METERED", "quantity": 1}]}, "items[0][quantity]"),
        ({"items": [{"price": "price_none"}]}, "items[0][price]"),
        ({"items": [{"price": "BASE"}, {"price": "BASE"}]}, "items"),
        ({"items": [{"price": "BASE"}], "customer": "cus_none"}, "customer"),
        ({"items": [{"price": "BASE"}], "trial_period_days": 7, "trial_end": 4000000000}, "trial_end"),
        ({"items": [{"price": "BASE"}], "billing_cycle_anchor": 1}, "billing_cycle_anchor"),
        ({"items": [{"price": "BASE"}], "default_payment_method": "pm_none"}, "default_payment_method"),
        ({"items": [{"price": "BASE"}], "payment_behavior": "maybe"}, "payment_behavior"),
        ({"items": [{"price": "BASE"}], "collection_method": "send_invoice"}, "collection_method"),
        ({"items": [{"price": "BASE"}], "billing_mode": {"type": "classic"}}, "billing_mode[type]"),
        ({"items": [{"price": "BASE"}], "currency": "eur"}, "currency"),
    ],
)
async def test_a_subscription_that_makes_no_sense_is_refused(
    billing: Billing, params: dict[str, Any], param: str
) -> None:
    names = {"METERED": billing.offer.metered, "BASE": billing.offer.base}
    items = [{**item, "price": names.get(item["price"], item["price"])} for item in params["items"]]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.subscriptions.create_async({"customer": billing.customer, **params, "items": items})
    assert caught.value.param == param


async def test_usage_of_the_very_second_of_a_change_is_billed_once(billing: Billing) -> None:
    made = await billing.subscribe()
    now = await billing.now()
    await billing.use(5, timestamp=now)
    removed = {"id": made.items.data[1].id, "deleted": True}
    await change(billing, made, removed, proration_behavior="always_invoice")
    await change(billing, made, {"price": billing.offer.metered})
    await billing.use(3)
    last = await billing.api.subscriptions.cancel_async(made.id, {"invoice_now": True})
    assert [line for each in (await billing.invoices())[1:] for line in amounts(each)] == [(250, 5), (150, 3)]
    assert last.latest_invoice == (await billing.invoices())[-1].id
