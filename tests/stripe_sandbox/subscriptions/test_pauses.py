import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, amounts, billing_at

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _end(billing: Billing, subscription_id: str) -> int:
    return (await billing.subscription(subscription_id)).items.data[0].current_period_end


@pytest.mark.parametrize(
    ("behavior", "status"), [("keep_as_draft", "draft"), ("void", "void"), ("mark_uncollectible", "uncollectible")]
)
async def test_paused_collection_sets_new_invoices_aside(billing: Billing, behavior: str, status: str) -> None:
    made = await billing.subscribe()
    paused = await billing.api.subscriptions.update_async(made.id, {"pause_collection": {"behavior": behavior}})
    assert (paused.status, paused.pause_collection.behavior, paused.pause_collection.resumes_at) == (
        "active",
        behavior,
        None,
    )
    await billing.use(4)
    await billing.advance_to(await _end(billing, made.id) + 2 * HOUR)
    aside = (await billing.invoices())[-1]
    assert (aside.status, aside.auto_advance, amounts(aside)) == (status, False, [(200, 4), (2000, 1)])
    assert (await billing.subscription(made.id)).status == "active"
    again = await billing.api.subscriptions.update_async(made.id, {"pause_collection": ""})
    assert again.pause_collection is None
    await billing.advance_to(await _end(billing, made.id) + 2 * HOUR)
    assert [each.status for each in await billing.invoices()] == ["paid", status, "paid"]


async def test_the_collection_resumes_by_itself_before_the_renewal_of_that_second(billing: Billing) -> None:
    made = await billing.subscribe()
    end = await _end(billing, made.id)
    pause = {"behavior": "void", "resumes_at": end}
    await billing.api.subscriptions.update_async(made.id, {"pause_collection": pause})
    await billing.advance_to(end)
    assert (await billing.subscription(made.id)).pause_collection is None
    await billing.advance(2 * HOUR)
    assert [each.status for each in await billing.invoices()] == ["paid", "paid"]
    with pytest.raises(stripe.InvalidRequestError, match="future"):
        await billing.api.subscriptions.update_async(made.id, {"pause_collection": pause})


async def test_an_invoice_from_before_the_pause_is_charged_all_the_same(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.advance_to(await _end(billing, made.id))
    await billing.api.subscriptions.update_async(made.id, {"pause_collection": {"behavior": "void"}})
    await billing.advance(2 * HOUR)
    assert [each.status for each in await billing.invoices()] == ["paid", "paid"]


async def test_a_charge_at_once_during_the_pause_is_not_collected(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    await billing.api.subscriptions.update_async(made.id, {"pause_collection": {"behavior": "keep_as_draft"}})
    changed = await billing.api.subscriptions.update_async(
        made.id,
        {"items": [{"id": made.items.data[0].id, "quantity": 3}], "proration_behavior": "always_invoice"},
    )
    invoice = (await billing.invoices())[-1]
    assert (changed.latest_invoice, invoice.status, invoice.auto_advance) == (invoice.id, "draft", False)


async def test_a_paused_subscription_bills_its_usage_and_makes_no_invoice(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.use(6)
    paused = await billing.api.subscriptions.pause_async(made.id, {"bill_for": {"unused_time_from": {"type": "none"}}})
    assert paused.status == "paused"
    assert paused.status_details.to_dict()["paused"] == {
        "subscription": {"type": "pause_requested"},
        "transitioned_at": paused.status_details.paused.transitioned_at,
        "type": "subscription",
    }
    waiting = await billing.api.invoice_items.list_async({"customer": billing.customer, "pending": True})
    assert [(item.amount, item.quantity) for item in waiting.data] == [(300, 6)]
    await billing.use(100)
    await billing.advance(70 * DAY)
    assert len(await billing.invoices()) == 1
    resumed = await billing.api.subscriptions.resume_async(made.id, {"payment_behavior": "resume_on_payment_success"})
    assert (resumed.status, resumed.status_details) == ("active", None)
    last = (await billing.invoices())[-1]
    assert (last.status, amounts(last)) == ("paid", [(300, 6), (2000, 1)]), "usage during the pause is free"
    assert await billing.types("customer.subscription.") == [
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.paused",
        "customer.subscription.updated",
        "customer.subscription.updated",
        "customer.subscription.resumed",
    ]


async def test_the_unused_time_is_credited_and_the_rest_charged_when_the_anchor_stays(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    start, end = made.items.data[0].current_period_start, await _end(billing, made.id)
    await billing.advance_to(start + (end - start) // 2)
    await billing.api.subscriptions.pause_async(made.id, {"invoicing_behavior": "invoice"})
    credit = (await billing.invoices())[-1]
    assert -1000 <= credit.total <= -999
    await billing.advance(5 * DAY)
    resumed = await billing.api.subscriptions.resume_async(made.id, {"billing_cycle_anchor": {"type": "unchanged"}})
    assert (resumed.status, resumed.items.data[0].current_period_end) == ("active", end)
    waiting = await billing.api.invoice_items.list_async({"customer": billing.customer, "pending": True})
    [rest] = waiting.data
    assert rest.amount == pytest.approx(2000 * (end - await billing.now()) / (end - start), abs=1)
    with pytest.raises(stripe.InvalidRequestError, match="Only a subscription that is paused"):
        await billing.api.subscriptions.resume_async(made.id)


@pytest.mark.parametrize(
    ("act", "status"), [("pay", "active"), ("decline", "past_due"), ("give_up", "active"), ("wait", "paused")]
)
async def test_a_resumption_waits_for_its_payment(billing: Billing, act: str, status: str) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    await billing.api.subscriptions.pause_async(made.id, {"bill_for": {"unused_time_from": {"type": "none"}}})
    waiting = await billing.api.subscriptions.resume_async(made.id)
    invoice = (await billing.invoices())[-1]
    assert (waiting.status, waiting.latest_invoice, invoice.status) == ("paused", invoice.id, "open")
    with pytest.raises(stripe.InvalidRequestError, match="earlier resumption"):
        await billing.api.subscriptions.resume_async(made.id)
    match act:
        case "pay":
            await billing.api.invoices.pay_async(invoice.id)
        case "decline":
            await billing.card("declines")
            with pytest.raises(stripe.CardError):
                await billing.api.invoices.pay_async(invoice.id)
        case "give_up":
            await billing.api.invoices.mark_uncollectible_async(invoice.id)
        case _:
            await billing.advance(23 * HOUR)
            assert (await billing.invoices())[-1].status == "void"
    assert (await billing.subscription(made.id)).status == status


async def test_a_pause_is_refused_with_a_schedule_and_when_paused(billing: Billing) -> None:
    made = await billing.subscribe()
    schedule = await billing.api.subscription_schedules.create_async({"from_subscription": made.id})
    with pytest.raises(stripe.InvalidRequestError, match="schedule"):
        await billing.api.subscriptions.pause_async(made.id)
    await billing.api.subscription_schedules.release_async(schedule.id)
    await billing.api.subscriptions.pause_async(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="that is paused cannot be paused"):
        await billing.api.subscriptions.pause_async(made.id)


async def test_a_trial_that_ends_without_a_card_says_why_it_is_paused(billing: Billing) -> None:
    await billing.card("none")
    made = await billing.subscribe(
        trial_period_days=7, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )
    await billing.advance_to(made.trial_end or 0)
    paused = await billing.subscription(made.id)
    assert paused.status_details is not None
    assert paused.status_details.paused.subscription.type == "trial_end_without_payment_method"


@pytest.mark.parametrize(("at_once", "reason"), [(False, "final_payment_failure"), (True, "first_payment_failure")])
async def test_dunning_can_end_in_a_pause(billing: Billing, at_once: bool, reason: str) -> None:  # noqa: FBT001 - a parameter of the test
    await billing.control("dunning", {"ends": "paused", "pauses_at_first_failure": at_once})
    made = await billing.subscribe()
    await billing.card("declines")
    await billing.advance_to(await _end(billing, made.id) + 2 * HOUR)
    assert (await billing.subscription(made.id)).status == ("paused" if at_once else "past_due")
    await billing.advance(16 * DAY)
    paused = await billing.subscription(made.id)
    assert paused.status == "paused"
    assert paused.status_details is not None
    assert paused.status_details.paused.subscription.type == reason
