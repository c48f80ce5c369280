"""Events of checkout pages that did not lead to a subscription."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handler, rules
from billing_svc.subscriptions.checkouts import close_checkout
from billing_svc.subscriptions.records import apply_subscription


class CheckoutHandler:
    """Closes checkout pages. A closed page never opens again, so nothing is fetched."""

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            accounts = [await close_page(conn, event, now) for event in events]
            account_id = next((one for one in accounts if one), None)
            if account_id is None:
                raise apply_subscription.NotOurs("this service did not open the checkout")
            return account_id

        return apply


async def close_page(conn: AsyncConnection, event: rules.Event, now: datetime) -> str | None:
    """Close the checkout page of a session's event; returns its account, or None if the page is not ours."""
    named = event.checkout
    if named is None:
        return None
    state = "complete" if event.type == "checkout.session.completed" else "expired"
    await close_checkout.close(conn, named.account_id, named.checkout_id, state, handler.origin([event]), now)
    return named.account_id
