"""Cancelling and resuming a subscription; the portal; and buying twice."""

from datetime import timedelta

import pytest

from billing.v1 import subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import event_about
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW, Dealing


async def test_at_the_period_s_end_the_plan_stays_until_then(deal: Dealing) -> None:
    await deal.buy()
    told = await deal.cancel(AT_PERIOD_END)
    assert (told.plan, told.cancel_at_period_end, told.cancel_at) == ("pro", True, told.period_end)
    await deal.use("runs", 202)
    await deal.advance(days=33)
    told = await deal.told()
    assert (told.plan, told.status, told.HasField("ended_at")) == ("free", subscription_pb2.STATUS_CANCELED, True)
    assert await deal.invoiced() == {"nyqst_pro_monthly": 2_000, "nyqst_pro_runs": 100}


async def test_cancelling_now_invoices_what_was_used_and_the_default_plan_follows(deal: Dealing) -> None:
    await deal.buy()
    await deal.use("runs", 230)
    told = await deal.cancel(NOW, request_id="r1")
    assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_CANCELED)
    assert await deal.invoiced() == {"nyqst_pro_monthly": 2_000, "nyqst_pro_runs": 1_500}
    assert (await deal.cancel(NOW, request_id="r1")).status == subscription_pb2.STATUS_CANCELED
    refusal = await refusals.refused(deal.cancel(NOW, request_id="r2"))
    assert refusal.reason == "NOT_SUBSCRIBED"
    await deal.advance(days=33)
    assert await deal.invoiced() == {"nyqst_pro_monthly": 2_000, "nyqst_pro_runs": 1_500}


async def test_a_cancellation_can_be_taken_back_until_it_takes_effect(deal: Dealing) -> None:
    await deal.buy()
    refusal = await refusals.refused(deal.resume())
    assert (refusal.reason, refusal.metadata) == ("NOT_CANCELING", {"account_id": "org_1"})
    await deal.cancel(AT_PERIOD_END)
    told = await deal.resume(request_id="r1")
    assert (told.cancel_at_period_end, told.HasField("cancel_at")) == (False, False)
    assert await deal.resume(request_id="r1") == told
    await deal.advance(days=33)
    assert (await deal.told()).plan == "pro"
    await deal.cancel(AT_PERIOD_END)
    await deal.advance(days=33)
    assert (await refusals.refused(deal.resume())).reason == "NOT_SUBSCRIBED"


async def test_cancelling_what_is_ending_already_changes_nothing(deal: Dealing) -> None:
    await deal.buy()
    await deal.cancel(AT_PERIOD_END)
    writes = len(await deal.world.sandbox.writes())
    await deal.cancel(AT_PERIOD_END)
    assert len(await deal.world.sandbox.writes()) == writes
    assert (await deal.cancel(NOW)).plan == "free"


@pytest.mark.parametrize("timing", [NOW, AT_PERIOD_END])
@pytest.mark.parametrize("after", [False, True])
async def test_an_outage_in_the_middle_is_carried_on(deal: Dealing, timing: int, *, after: bool) -> None:
    await deal.buy()

    async def cut(method: str, _path: str) -> int | None:
        return None if method == "GET" else 503

    faults = deal.world.sandbox.faults
    faults.before, faults.after = (faults.before, cut) if after else (cut, faults.after)
    refusal = await refusals.refused(deal.cancel(timing, request_id="r1"))
    assert refusal.retry_after_seconds is not None
    faults.clear()
    told = await deal.cancel(timing, request_id="r1")
    assert told.plan == ("free" if timing == NOW else "pro")
    assert told.HasField("ended_at" if timing == NOW else "cancel_at")


async def test_every_change_has_its_audit_row(deal: Dealing) -> None:
    await deal.buy()
    await deal.cancel(AT_PERIOD_END)
    await deal.resume()
    await deal.cancel(NOW)
    actions = [
        (row.action, row.actor)
        for row in sorted(await deal.world.rows(tables.audit_log), key=lambda row: row.at)
        if row.account_id == "org_1" and row.actor == "caller:test"
    ]
    assert [action for action, _ in actions if action.endswith("_requested")] == [
        "subscription.cancel_requested",
        "subscription.resume_requested",
        "subscription.cancel_requested",
    ]
    assert [action for action, _ in actions].count("subscription.applied") == 3


async def test_cancelled_in_the_portal_it_stays_until_the_period_s_end(deal: Dealing) -> None:
    """In flexible billing mode Stripe sets only `cancel_at`."""
    subscription_id = await deal.buy()
    (subscription,) = await deal.at_stripe()
    period_end = subscription["items"]["data"][0]["current_period_end"]
    await deal.world.sandbox.call("POST", f"/v1/subscriptions/{subscription_id}", cancel_at=period_end)
    await deal.world.deliver_new()
    told = await deal.told()
    assert (told.plan, told.cancel_at.seconds, told.cancel_at_period_end) == ("pro", period_end, True)
    assert (await deal.resume()).HasField("cancel_at") is False


async def test_unpaid_it_is_kept_while_past_due_and_lost_when_stripe_gives_up(deal: Dealing) -> None:
    await deal.buy()
    await deal.give_card("declines")
    await deal.advance(days=33)
    told = await deal.told()
    assert (told.plan, told.past_due, told.status) == ("pro", True, subscription_pb2.STATUS_PAST_DUE)
    await deal.advance(days=40)
    told = await deal.told()
    assert (told.plan, told.past_due) == ("free", False)


async def test_of_two_paid_subscriptions_the_first_stays_and_the_other_is_credited(deal: Dealing) -> None:
    """The test does not depend on how a second page came to be paid: here the page was not expired."""
    first = await deal.buy()
    (held,) = await deal.at_stripe()
    second = await _buy_again(deal, held)
    deal.world.billing.clock.advance(timedelta(seconds=5))
    for _ in range(2):
        await deal.world.deliver_new()
        await deal.work()
    by_id = {one["id"]: one["status"] for one in await deal.at_stripe()}
    assert by_id == {first: "active", second: "canceled"}
    told = await deal.told()
    assert (told.subscription_id, told.status) == (first, subscription_pb2.STATUS_ACTIVE)
    actions = [row.action for row in await deal.world.rows(tables.audit_log)]
    assert actions.count("subscription.superfluous") == 1
    credit = sum(invoice["total"] for invoice in await deal.world.sandbox.all("/v1/invoices", subscription=second))
    assert abs(credit) <= 1


@pytest.mark.parametrize("reverse", [False, True])
async def test_which_of_two_stays_does_not_depend_on_the_order_of_their_events(deal: Dealing, *, reverse: bool) -> None:
    await deal.world.subscribe()
    (held,) = await deal.at_stripe()
    second = await _buy_again(deal, held, later_seconds=3)
    subjects = await deal.at_stripe()
    for subject in reversed(subjects) if reverse else subjects:
        await deal.world.deliver(event_about(subject, "customer.subscription.updated"))
        await deal.world.apply_all()
    rows = {row.subscription_id: row for row in await deal.world.rows(tables.subscriptions)}
    assert [name for name, row in rows.items() if row.superfluous] == [second]
    assert (await deal.told()).subscription_id == held["id"]


async def _buy_again(deal: Dealing, held: dict[str, object], later_seconds: int = 2) -> str:
    """Buy the same plan again at Stripe directly, a moment later."""
    await deal.world.sandbox.control("POST", "clock/step", {"seconds": later_seconds})
    items = held["items"]["data"]  # type: ignore[index]  # JSON
    made = await deal.world.sandbox.call(
        "POST",
        "/v1/subscriptions",
        **{
            "customer": held["customer"],
            "default_payment_method": held["default_payment_method"],
            **{f"items[{n}][price]": item["price"]["id"] for n, item in enumerate(items)},
            "metadata[account_id]": "org_1",
            "metadata[checkout_id]": "another",
            "metadata[plan]": "pro",
            "metadata[catalog_version]": "1",
        },
    )
    return str(made["id"])


async def test_the_portal_needs_a_customer(deal: Dealing) -> None:
    request = subscription_pb2.CreatePortalSessionRequest(account_id="org_1")
    refusal = await refusals.refused(deal.world.billing.subscriptions.CreatePortalSession(request))
    assert (refusal.reason, refusal.metadata) == ("NO_STRIPE_CUSTOMER", {"account_id": "org_1"})
    elsewhere = subscription_pb2.CreatePortalSessionRequest(account_id="org_1", return_url="https://evil.example.com/")
    refusal = await refusals.refused(deal.world.billing.subscriptions.CreatePortalSession(elsewhere))
    assert refusal.fields == ("return_url",)


async def test_the_portal_s_page_is_the_same_one_while_it_is_fresh(deal: Dealing) -> None:
    await deal.world.checkout()
    call = deal.world.billing.subscriptions.CreatePortalSession
    request = subscription_pb2.CreatePortalSessionRequest(account_id="org_1", request_id="r1")
    first = await call(request)
    assert first.url.startswith(deal.world.sandbox.url)
    assert (await call(request)).url == first.url
    (made,) = await deal.world.sandbox.requests("POST", "/v1/billing_portal/sessions")
    assert made["params"]["return_url"] == deal.world.billing.settings.cancel_url
    assert made["params"]["configuration"].startswith("bpc_")
    deal.world.billing.clock.advance(timedelta(minutes=6))
    assert (await call(request)).url != first.url
    other = subscription_pb2.CreatePortalSessionRequest(
        account_id="org_1", request_id="r1", return_url=deal.world.billing.settings.success_url
    )
    assert (await refusals.refused(call(other))).reason == "REQUEST_ID_REUSED"
