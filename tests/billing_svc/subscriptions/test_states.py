"""Subscriptions that are paused, unpaid or incomplete: what is shown, what may be used, and the way out."""

import pytest
import sqlalchemy as sa

from billing.v1 import decision_pb2, subscription_pb2
from billing_svc.platform.database import tables
from billing_svc.stripe import catalog_sync
from tests.billing_svc import refusals, sandboxed
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW, Dealing

SUBSCRIPTIONS = "/v1/subscriptions"
DENIED, ALLOWED = decision_pb2.DECISION_DENIED, decision_pb2.DECISION_ALLOWED


@pytest.fixture
def policy() -> str:
    return ""


@pytest.fixture
async def deal(world: World, policy: str) -> Dealing:
    """An account, and a catalog with a policy for pauses."""
    if policy:
        catalog = sandboxed.catalog_of("nyqst", {"default_plan: free\n": f"default_plan: free\n{policy}\n"})
        billing = world.billing
        await catalog_sync.apply(
            billing.transactions, world.stripe, catalog, "operator:test", billing.clock, lambda _line: None
        )
    return Dealing(world)


async def pause_collection(deal: Dealing, subscription_id: str, behavior: str = "void") -> None:
    await deal.world.sandbox.call(
        "POST", f"{SUBSCRIPTIONS}/{subscription_id}", **{"pause_collection[behavior]": behavior}
    )
    await deal.world.deliver_new()


@pytest.mark.parametrize("behavior", ["void", "keep_as_draft", "mark_uncollectible"])
async def test_paused_collection_is_shown_and_keeps_the_plan_without_overage(deal: Dealing, behavior: str) -> None:
    subscription_id = await deal.buy()
    await deal.use("runs", 199)
    assert (await deal.check("runs", 2)).decision == ALLOWED
    await pause_collection(deal, subscription_id, behavior)
    told = await deal.told()
    assert (told.plan, told.status) == ("pro", subscription_pb2.STATUS_ACTIVE)
    name = subscription_pb2.CollectionBehavior.Name(told.collection_pause.behavior)
    assert name == f"COLLECTION_BEHAVIOR_{behavior.upper()}"
    assert not told.collection_pause.HasField("resumes_at")
    assert (await deal.check("runs", 1)).decision == ALLOWED
    denied = await deal.check("runs", 2)
    assert (denied.decision, denied.reason) == (DENIED, decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED)
    # What happens all the same is counted, and forgiven: no invoice of the pause is paid.
    assert (await deal.use("runs", 5)).billable == 0
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", pause_collection="")
    await deal.world.deliver_new()
    told = await deal.told()
    assert (told.plan, told.HasField("collection_pause")) == ("pro", False)
    assert (await deal.check("runs")).decision == ALLOWED
    # Units are charged once, from the end of the pause on.
    assert (await deal.use("runs", 3)).billable == 3


async def test_the_end_of_a_collection_pause_is_shown(deal: Dealing) -> None:
    subscription_id = await deal.buy()
    (held,) = await deal.at_stripe()
    at = held["items"]["data"][0]["current_period_end"]
    pause = {"pause_collection[behavior]": "void", "pause_collection[resumes_at]": at}
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", **pause)
    await deal.world.deliver_new()
    assert (await deal.told()).collection_pause.resumes_at.seconds == at


@pytest.mark.parametrize("policy", ["while_collection_paused: default_plan"])
async def test_the_catalog_may_give_the_default_plan_while_collection_is_paused(deal: Dealing) -> None:
    subscription_id = await deal.buy()
    await pause_collection(deal, subscription_id)
    told = await deal.told()
    assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_ACTIVE)
    assert told.HasField("collection_pause")
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", pause_collection="")
    await deal.world.deliver_new()
    assert (await deal.told()).plan == "pro"


@pytest.mark.parametrize(("policy", "plan"), [("", "free"), ("while_paused: keep", "pro")])
async def test_a_paused_subscription_is_shown_with_its_reason(deal: Dealing, policy: str, plan: str) -> None:
    subscription_id = await deal.buy()
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}/pause", type="subscription")
    await deal.world.deliver_new()
    told = await deal.told()
    assert (told.status, told.pause_reason) == (
        subscription_pb2.STATUS_PAUSED,
        subscription_pb2.PAUSE_REASON_REQUESTED,
    )
    assert told.plan == plan, policy
    assert (await deal.check("runs", 201)).decision == DENIED
    for call in (deal.change(quantity=2), deal.world.checkout()):
        refusal = await refusals.refused(call)
        assert (refusal.code.name, refusal.metadata["status"]) == ("FAILED_PRECONDITION", "paused")
        assert "resumed at Stripe" in refusal.message
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}/resume")
    await deal.world.deliver_new()
    told = await deal.told()
    assert (told.plan, told.status, told.pause_reason) == ("pro", subscription_pb2.STATUS_ACTIVE, 0)


async def test_a_paused_subscription_can_be_ended(deal: Dealing) -> None:
    subscription_id = await deal.buy()
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}/pause", type="subscription")
    await deal.world.deliver_new()
    assert (await deal.cancel(NOW)).status == subscription_pb2.STATUS_CANCELED
    assert (await deal.world.checkout()).url


async def test_unpaid_every_error_says_what_is_owed_and_where_it_is_paid(deal: Dealing) -> None:
    await deal.world.sandbox.control("POST", "dunning", {"ends": "unpaid"})
    await deal.buy()
    await deal.give_card("declines")
    await deal.advance(days=50)
    assert (await deal.told()).status == subscription_pb2.STATUS_UNPAID
    (invoice,) = [one for one in await deal.world.sandbox.all("/v1/invoices") if one["status"] == "open"]
    owed = {
        "status": "unpaid",
        "amount_due": "20.00",
        "currency": "usd",
        "invoice_id": invoice["id"],
        "invoice_url": invoice["hosted_invoice_url"],
    }
    for call, reason in (
        (deal.world.checkout(), "ALREADY_SUBSCRIBED"),
        (deal.change(quantity=2), "NOT_SUBSCRIBED"),
        (deal.resume(), "NOT_CANCELING"),
    ):
        refusal = await refusals.refused(call)
        assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", reason)
        assert owed.items() <= refusal.metadata.items()
        assert f"20.00 usd is owed, and can be paid at {invoice['hosted_invoice_url']}" in refusal.message
    # The end is a way out too.
    await deal.cancel(AT_PERIOD_END)
    assert (await deal.cancel(NOW)).status == subscription_pb2.STATUS_CANCELED


async def test_without_a_stored_invoice_the_portal_is_the_way_out(deal: Dealing) -> None:
    await deal.world.sandbox.control("POST", "dunning", {"ends": "unpaid"})
    await deal.buy()
    await deal.give_card("declines")
    await deal.advance(days=50)
    await deal.world.execute(tables.invoices.delete())
    refusal = await refusals.refused(deal.world.checkout())
    assert refusal.metadata == {"plan": "pro", "status": "unpaid"}
    assert "CreatePortalSession" in refusal.message


async def test_a_first_payment_that_is_under_way_grants_and_sells_nothing(deal: Dealing) -> None:
    subscription_id = await deal.buy()
    # As a debit that takes days leaves it: Stripe has the subscription, and no payment yet.
    await deal.world.execute(
        tables.subscriptions.update().values(status="incomplete", effective_until=tables.subscriptions.c.effective_from)
    )
    assert (await deal.told()).plan == "free"
    refusal = await refusals.refused(deal.world.checkout())
    assert (refusal.reason, refusal.metadata["status"]) == ("ALREADY_SUBSCRIBED", "incomplete")
    assert "a first payment that is under way needs nothing" in refusal.message
    assert len(await deal.at_stripe()) == 1
    # The event of the payment gives the plan once.
    await deal.world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", **{"metadata[note]": "paid"})
    await deal.world.deliver_new()
    assert (await deal.told()).plan == "pro"


@pytest.mark.parametrize("timing", [NOW, AT_PERIOD_END])
async def test_what_has_no_price_of_a_catalog_can_be_ended_all_the_same(
    deal: Dealing, timing: subscription_pb2.Timing.ValueType
) -> None:
    await deal.buy()
    prices = tables.stripe_prices
    hidden = (prices.c.price_id, prices.c.product_id, prices.c.stripe_meter_id)
    await deal.world.execute(prices.update().values({column: sa.func.concat("hidden_", column) for column in hidden}))
    told = await deal.cancel(timing)
    if timing == NOW:
        assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_CANCELED)
    else:
        assert told.plan == "pro"
        assert told.HasField("cancel_at")
        assert not (await deal.resume()).HasField("cancel_at")
    # A finding says that the items differ from the plan as sold, and the end stays applied.
    await deal.world.deliver_new()
    assert {state for state, _ in (await deal.world.inbox_states()).values()} <= {"applied", "ignored"}
    found = {row.kind for row in await deal.world.rows(tables.findings) if row.closed_at is None}
    assert found == (set() if timing == NOW else {"items_differ"})
    assert (await deal.told()).plan == ("free" if timing == NOW else "pro")
