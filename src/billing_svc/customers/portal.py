"""Stripe's portal pages, where customers see invoices, change payment methods and cancel."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import create_customer, store
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents

# A page that nobody opens expires at Stripe after five minutes, so a repeat gets the same page only for a shorter time.
FRESH = timedelta(minutes=3)

# Returns the id of the portal's configuration; None: the Stripe account's default configuration.
ConfigurationOf = Callable[[AsyncConnection], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Visit:
    """The account whose portal is opened, and the URL that the customer returns to afterwards."""

    account_id: str
    request_id: str
    return_url: str


class Portal:
    """Opens portal pages."""

    def __init__(
        self,
        database: transactions.Transactions,
        stripe: client.Stripe,
        customers: create_customer.Customers,
        now: clock.Clock,
        portal_configuration_id: ConfigurationOf,
    ) -> None:
        self._database = database
        self._customers = customers
        self._requests = intents.Requests(database, stripe, now)
        self._clock = now
        self._configuration_of = portal_configuration_id

    async def open_page(self, visit: Visit, origin: audit_store.Origin) -> str:
        """Return a page's URL. An account whose customer was deleted at Stripe gets a new customer.

        Raises NoStripeCustomer, RequestIdReused, StripeUnavailable, StripeRefused and LostRace.
        """
        now = self._clock.now()

        async def begin(conn: AsyncConnection) -> str | None:
            if not await store.had_customer(conn, visit.account_id):
                message = "the account has no customer at Stripe; CreateCheckout creates it"
                raise errors.NoStripeCustomer(message, {"account_id": visit.account_id})
            if visit.request_id:
                asked = request_ids.CallerRequest(
                    visit.account_id, visit.request_id, "portal", {"return_url": visit.return_url}
                )
                if await request_ids.find(conn, asked) is None:
                    await request_ids.remember(conn, asked, {}, now)
            return await self._configuration_of(conn)

        configuration_id = await self._database.run(begin)
        customer_id = await self._customers.ensure(visit.account_id, "", origin)
        params: dict[str, Any] = {"customer": customer_id, "return_url": visit.return_url}
        if configuration_id is not None:
            params["configuration"] = configuration_id

        async def look_up(_since: datetime) -> client.Data | None:
            return None  # a second page does no harm, so the first is not looked up

        while_fresh = int(now.timestamp() // FRESH.total_seconds())
        purpose = f"portal:{visit.request_id}:{while_fresh}" if visit.request_id else f"portal:{uuid.uuid4().hex}"
        intent = intents.Intent(visit.account_id, purpose, "billing_portal.sessions.create", params)
        return str((await self._requests.perform(intent, look_up))["url"])
