import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, amounts, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

START = dt.datetime(2027, 1, 31, 10, 0, tzinfo=dt.UTC)


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, START) as made:
        yield made


def dates(subscription: stripe.Subscription) -> tuple[str, str]:
    """Return the period of the first item, and check that the other items have the same period."""
    ((start, end),) = {(item.current_period_start, item.current_period_end) for item in subscription.items.data}
    return f"{dt.datetime.fromtimestamp(start, dt.UTC):%m-%d}", f"{dt.datetime.fromtimestamp(end, dt.UTC):%m-%d}"


async def test_a_month_costs_twenty_dollars_and_sixty_runs_at_fifty_cents(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.use(45)
    await billing.advance(5 * DAY)
    await billing.use(20)
    await billing.use(-5)
    await billing.advance_to(made.items.data[0].current_period_end)
    first, renewal = await billing.invoices()
    assert (first.status, first.amount_paid, first.billing_reason) == ("paid", 2000, "subscription_create")
    assert (renewal.status, renewal.amount_due, amounts(renewal)) == ("draft", 5000, [(2000, 1), (3000, 60)])
    assert renewal.number is None
    await billing.advance(3600)
    (_, renewal) = await billing.invoices()
    assert (renewal.status, renewal.amount_paid, renewal.total) == ("paid", 5000, 5000)
    assert renewal.billing_reason == "subscription_cycle"
    assert renewal.parent
    assert renewal.parent.subscription_details
    assert renewal.parent.subscription_details.subscription == made.id
    assert renewal.number
    assert renewal.hosted_invoice_url
    assert renewal.status_transitions.paid_at
    base, used = sorted(renewal.lines.data, key=lambda line: line.amount)
    item = made.items.data[0]
    assert (used.period.start, used.period.end) == (item.current_period_start, item.current_period_end)
    assert base.period.start == used.period.end
    assert (await billing.subscription(made.id)).latest_invoice == renewal.id
    assert (
        await billing.types("invoice")
        == ["invoice.created", "invoice.finalized", "invoice.paid", "invoice.payment_succeeded"] * 2
    )


async def test_periods_keep_the_anchors_day(billing: Billing) -> None:
    made = await billing.subscribe()
    seen = [dates(made)]
    for _ in range(3):
        await billing.advance_to((await billing.subscription(made.id)).items.data[0].current_period_end)
        seen.append(dates(await billing.subscription(made.id)))
    assert seen == [("01-31", "02-28"), ("02-28", "03-31"), ("03-31", "04-30"), ("04-30", "05-31")]


async def test_usage_counts_until_the_invoice_is_final_and_never_afterwards(billing: Billing) -> None:
    made = await billing.subscribe()
    end = made.items.data[0].current_period_end
    await billing.advance_to(end + 1800)
    await billing.use(4, timestamp=end - 1)
    await billing.use(7, timestamp=end)
    await billing.advance(1801)
    await billing.use(1000, timestamp=end - 1)
    await billing.advance_to((await billing.subscription(made.id)).items.data[0].current_period_end + 3600)
    _, first, second = await billing.invoices()
    assert (first.amount_paid, amounts(first)) == (2200, [(200, 4), (2000, 1)])
    assert (second.amount_paid, amounts(second)) == (2350, [(350, 7), (2000, 1)])


async def test_usage_below_zero_bills_nothing(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.use(-3)
    await billing.advance_to(made.items.data[0].current_period_end + 3600)
    assert amounts((await billing.invoices())[-1]) == [(0, 0), (2000, 1)]


async def test_a_metered_subscription_alone_makes_no_invoice_at_first(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.metered})
    assert (made.status, made.latest_invoice, await billing.invoices()) == ("active", None, [])
    assert "quantity" not in made.items.data[0].to_dict()
    await billing.use(3)
    await billing.advance_to(made.items.data[0].current_period_end + 3600)
    (invoice,) = await billing.invoices()
    assert (invoice.amount_paid, amounts(invoice)) == (150, [(150, 3)])


async def test_a_period_can_begin_short(billing: Billing) -> None:
    now = await billing.now()
    anchor = now + 7 * DAY
    free = await billing.subscribe(billing_cycle_anchor=anchor, proration_behavior="none")
    assert free.items.data[0].current_period_end == free.billing_cycle_anchor == anchor
    assert (await billing.invoices())[-1].total == 0
    await billing.subscribe(billing_cycle_anchor=anchor)
    # The whole period, from January 7 to February 7, has 31 days.
    assert (await billing.invoices())[-1].total in {451, 452}
    await billing.advance_to(anchor)
    assert (await billing.subscription(free.id)).items.data[0].current_period_start == anchor


async def test_a_subscription_ended_at_the_periods_end_is_billed_for_its_usage_and_no_more(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.use(10)
    await billing.api.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    end = made.items.data[0].current_period_end
    await billing.advance_to(end)
    over = await billing.subscription(made.id)
    assert (over.status, over.ended_at, over.cancel_at) == ("canceled", end, end)
    await billing.use(2, timestamp=end - 1)
    await billing.advance(3600)
    last = (await billing.invoices())[-1]
    assert (last.status, amounts(last), last.id) == ("paid", [(600, 12)], over.latest_invoice)
    await billing.advance(40 * DAY)
    assert len(await billing.invoices()) == 2
    assert await billing.types("customer.subscription.") == [
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
    ]


async def test_a_trial_is_announced_to_end_and_then_charged(billing: Billing) -> None:
    made = await billing.subscribe(trial_period_days=14)
    assert (made.status, made.trial_end) == ("trialing", made.created + 14 * DAY)
    assert [invoice.total for invoice in await billing.invoices()] == [0]
    await billing.use(100)
    await billing.advance(11 * DAY)
    assert (await billing.types("customer.subscription."))[1:] == ["customer.subscription.trial_will_end"]
    await billing.advance_to(made.trial_end or 0)
    assert (await billing.subscription(made.id)).status == "active"
    await billing.advance(3600)
    last = (await billing.invoices())[-1]
    assert (last.status, amounts(last)) == ("paid", [(2000, 1)]), "usage in the trial is free"


@pytest.mark.parametrize(
    ("behavior", "status"), [("cancel", "canceled"), ("pause", "paused"), ("create_invoice", "active")]
)
async def test_a_trial_that_ends_without_a_card_follows_its_end_behavior(
    billing: Billing, behavior: str, status: str
) -> None:
    await billing.card("none")
    made = await billing.subscribe(
        trial_period_days=7, trial_settings={"end_behavior": {"missing_payment_method": behavior}}
    )
    await billing.advance_to(made.trial_end or 0)
    assert (await billing.subscription(made.id)).status == status
    await billing.advance(3600)
    if status == "paused":
        await billing.card("works")
        resumed = await billing.api.subscriptions.resume_async(
            made.id, {"payment_behavior": "resume_on_payment_success"}
        )
        assert (resumed.status, (await billing.invoices())[-1].amount_paid) == ("active", 2000)
    elif status == "active":
        assert (await billing.subscription(made.id)).status == "past_due"


async def test_pending_items_come_onto_the_next_invoice(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    for amount, more in ((123, {"subscription": made.id}), (-23, {}), (-1, {})):
        await billing.api.invoice_items.create_async(
            {"customer": billing.customer, "amount": amount, "currency": "usd", "description": "Late", **more}
        )
    waiting = await billing.api.invoice_items.list_async({"customer": billing.customer, "pending": True})
    await billing.api.invoice_items.delete_async(waiting.data[0].id)
    assert [item.amount for item in waiting.data] == [-1, -23, 123]
    await billing.advance_to(made.items.data[0].current_period_end + 3600)
    last = (await billing.invoices())[-1]
    assert (last.amount_paid, amounts(last)) == (2100, [(-23, 1), (123, 1), (2000, 1)])
    (taken, _) = (await billing.api.invoice_items.list_async({"customer": billing.customer})).data
    assert taken.invoice == last.id


async def test_a_manual_invoice_takes_the_pending_items(billing: Billing) -> None:
    api = billing.api
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await api.invoices.create_async({"customer": billing.customer, "pending_invoice_items_behavior": "include"})
    assert caught.value.code == "invoice_no_customer_line_items"
    await api.invoice_items.create_async({"customer": billing.customer, "amount": 777, "currency": "usd"})
    params = {"customer": billing.customer, "pending_invoice_items_behavior": "include", "auto_advance": True}
    draft = await api.invoices.create_async(params)
    assert (draft.status, draft.total, draft.billing_reason, draft.parent) == ("draft", 777, "manual", None)
    paid = await api.invoices.finalize_invoice_async(draft.id)
    assert (paid.status, paid.amount_paid) == ("paid", 777)
    await api.invoice_items.create_async({"customer": billing.customer, "amount": -500, "currency": "usd"})
    credit = await api.invoices.finalize_invoice_async((await api.invoices.create_async(params)).id)
    assert (credit.status, credit.amount_due, credit.total) == ("paid", 0, -500)
    assert (await api.customers.retrieve_async(billing.customer)).balance == -500
    await api.invoice_items.create_async({"customer": billing.customer, "amount": 600, "currency": "usd"})
    draft = await api.invoices.create_async({**params, "auto_advance": False})
    final = await api.invoices.finalize_invoice_async(draft.id)
    assert (final.status, final.amount_due, final.ending_balance) == ("open", 100, 0)
    assert (await api.invoices.void_invoice_async(final.id)).status == "void"
    assert (await api.customers.retrieve_async(billing.customer)).balance == -500, "what it used is there again"
    with pytest.raises(stripe.InvalidRequestError):
        await api.invoices.pay_async(final.id)
