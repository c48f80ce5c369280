"""Acts of the customer: in the product that calls our RPCs, on Checkout's page, and in the portal."""

from typing import Any
from urllib.parse import urlsplit

from billing.v1 import subscription_pb2
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW
from tests.faults.walk.shop import PER_SEAT, PLANS
from tests.faults.walk.walker import ACCOUNT, Act, Walker


def _asked(walker: Walker) -> dict[str, Any]:
    released = walker.draw.random() < 0.5
    return {"account_id": ACCOUNT, "request_id": walker.unique(), "release_foreign_schedule": released}


async def open_a_checkout(walker: Walker) -> None:
    """Open a Checkout page, and leave it."""
    plan = walker.draw.choice(PLANS)
    quantity = {"quantity": walker.draw.randint(1, 3)} if plan in PER_SEAT else {}
    page = await walker.tried(walker.ledger.world.checkout(ACCOUNT, plan=plan, **quantity))
    walker.note(f"  CreateCheckout {plan} {quantity}")
    if page is not None:
        walker.page = page.url


async def buy(walker: Walker) -> None:
    """Open a Checkout page, and pay."""
    await open_a_checkout(walker)
    await pay_the_checkout(walker)


async def pay_the_checkout(walker: Walker) -> None:
    """Press the button of the last Checkout page, also if it was paid or is over."""
    if walker.page:
        await walker.press(f"{walker.page}/pay")


async def _change(walker: Walker, timing: subscription_pb2.Timing.ValueType) -> None:
    plan = walker.draw.choice(("", *PLANS))
    request = subscription_pb2.ChangePlanRequest(timing=timing, plan=plan, **_asked(walker))
    if plan in PER_SEAT:
        request.quantity = walker.draw.randint(1, 3)
    walker.note(f"  ChangePlan {plan or 'to the present plan'}, quantity {request.quantity}")
    await walker.tried(walker.ledger.world.billing.subscriptions.ChangePlan(request))


async def change_now(walker: Walker) -> None:
    """Change the plan now."""
    await _change(walker, NOW)


async def change_at_the_periods_end(walker: Walker) -> None:
    """Change the plan at the end of the period."""
    await _change(walker, AT_PERIOD_END)


async def _cancel(walker: Walker, timing: subscription_pb2.Timing.ValueType) -> None:
    request = subscription_pb2.CancelSubscriptionRequest(timing=timing, **_asked(walker))
    await walker.tried(walker.ledger.world.billing.subscriptions.CancelSubscription(request))


async def cancel_now(walker: Walker) -> None:
    """Cancel now."""
    await _cancel(walker, NOW)


async def cancel_later(walker: Walker) -> None:
    """Cancel at the end of the period."""
    await _cancel(walker, AT_PERIOD_END)


async def resume(walker: Walker) -> None:
    """Resume."""
    request = subscription_pb2.ResumeSubscriptionRequest(**_asked(walker))
    await walker.tried(walker.ledger.world.billing.subscriptions.ResumeSubscription(request))


async def pay_as_you_go(walker: Walker) -> None:
    """Switch pay-as-you-go on."""
    await walker.tried(walker.ledger.switch(on=True, request_id=walker.unique()))


async def no_pay_as_you_go(walker: Walker) -> None:
    """Switch pay-as-you-go off."""
    await walker.tried(walker.ledger.switch(on=False, request_id=walker.unique()))


async def look_around(walker: Walker) -> None:
    """Look at plan, invoices and costs, with a preview of a change."""
    api = walker.ledger.world.billing.subscriptions
    await walker.tried(api.ListInvoices(subscription_pb2.ListInvoicesRequest(account_id=ACCOUNT)))
    await walker.tried(api.PreviewCost(subscription_pb2.PreviewCostRequest(account_id=ACCOUNT, plan="big")))
    await walker.tried(walker.ledger.change(NOW, plan="big", preview=True, release_foreign_schedule=True))


async def _portal(walker: Walker) -> str | None:
    request = subscription_pb2.CreatePortalSessionRequest(
        account_id=ACCOUNT, return_url="https://app.example.com/", request_id=walker.unique()
    )
    made = await walker.tried(walker.ledger.world.billing.subscriptions.CreatePortalSession(request))
    return None if made is None else urlsplit(made.url).path


async def _in_the_portal(walker: Walker, button: str) -> None:
    page, found = await _portal(walker), await walker.a_subscription()
    if page is not None and found is not None:
        await walker.press(f"{page}/{button}", subscription=found["id"])


async def cancel_in_the_portal(walker: Walker) -> None:
    """Cancel in the portal."""
    await _in_the_portal(walker, "cancel")


async def undo_in_the_portal(walker: Walker) -> None:
    """Undo a cancellation in the portal."""
    await _in_the_portal(walker, "renew")


async def pay_in_the_portal(walker: Walker) -> None:
    """Pay an open invoice in the portal."""
    page, invoice = await _portal(walker), await walker.an_invoice("open")
    if page is not None and invoice is not None:
        await walker.press(f"{page}/pay", invoice=invoice["id"])


async def _card(walker: Walker, card: str) -> None:
    customer = await walker.customer()
    if customer is not None:
        await walker.control("POST", "cards", {"customer": customer, "card": card})


async def give_a_card(walker: Walker) -> None:
    """Give a card that works."""
    await _card(walker, "works")


async def give_a_bad_card(walker: Walker) -> None:
    """Give a card that is declined, or that needs an authentication."""
    await _card(walker, walker.draw.choice(("declines", "requires_action")))


async def remove_the_card(walker: Walker) -> None:
    """Remove the card."""
    await _card(walker, "none")


ACTS: tuple[tuple[Act, int], ...] = (
    (open_a_checkout, 1),
    (buy, 7),
    (pay_the_checkout, 1),
    (change_now, 4),
    (change_at_the_periods_end, 2),
    (cancel_now, 2),
    (cancel_later, 2),
    (resume, 3),
    (pay_as_you_go, 3),
    (no_pay_as_you_go, 1),
    (look_around, 1),
    (cancel_in_the_portal, 2),
    (undo_in_the_portal, 2),
    (pay_in_the_portal, 2),
    (give_a_card, 3),
    (give_a_bad_card, 2),
    (remove_the_card, 1),
)
