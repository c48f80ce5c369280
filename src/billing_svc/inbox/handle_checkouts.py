"""Checkout pages that were left without buying."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handling, rules
from billing_svc.subscriptions.checkouts import closing
from billing_svc.subscriptions.records import applying


class Checkouts:
    """Closes pages. A page that is over stays so: there is nothing to fetch."""

    async def prepare(self, events: Sequence[rules.Event]) -> handling.Apply:
        """See Handler."""

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            accounts = [await close_page(conn, event, now) for event in events]
            account_id = next((one for one in accounts if one), None)
            if account_id is None:
                raise applying.NotOurs("the checkout is none that this service opened")
            return account_id

        return apply


async def close_page(conn: AsyncConnection, event: rules.Event, now: datetime) -> str | None:
    """Close the page that a session's event is about; returns its account, if it is one of ours."""
    named = event.checkout
    if named is None:
        return None
    state = "complete" if event.type == "checkout.session.completed" else "expired"
    await closing.close(conn, named.account_id, named.checkout_id, state, handling.origin([event]), now)
    return named.account_id
