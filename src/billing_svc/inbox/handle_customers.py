"""Events of customers. Only a customer's link to its account is stored here, so only a deletion has an effect."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store as customers_store
from billing_svc.inbox import handler, rules
from billing_svc.subscriptions.records import apply_subscription
from billing_svc.subscriptions.refusals import gone_customers


class CustomerHandler:
    """Unlinks an account from a deleted customer. A deletion is final, so the customer is not fetched."""

    def __init__(self, gone: gone_customers.GoneCustomers) -> None:
        self._gone_customers = gone

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        customer_id = events[0].object_id
        is_deleted = any(event.tells_of_deletion for event in events)
        origin = handler.origin(events)
        if is_deleted:
            await self._gone_customers.end_subscriptions(customer_id, origin)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            account_id = await customers_store.account_of_customer(conn, customer_id)
            if account_id is None:
                raise apply_subscription.NotOurs(f"customer {customer_id} is not ours")
            if is_deleted:
                await gone_customers.unlink(conn, account_id, customer_id, origin, now)
            return account_id

        return apply
