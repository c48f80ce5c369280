"""Creates an account's customer at Stripe: a single customer for each account, also if calls race."""

from datetime import datetime, timedelta
from typing import Any

from billing_svc.customers import store
from billing_svc.platform import clock
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, intents

# The largest difference assumed between our clock and Stripe's.
CLOCKS_APART_MAX = timedelta(minutes=10)


class Customers:
    """Creates customers."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, now: clock.Clock) -> None:
        self._database = database
        self._stripe = stripe
        self._requests = intents.Requests(database, stripe, now)
        self._clock = now

    async def ensure(self, account_id: str, email: str, origin: audit_store.Origin) -> str:
        """Return the account's customer at Stripe. Creates the customer if there is none or it was deleted at Stripe.

        Raises StripeUnavailable, StripeRefused and LostRace.
        """
        known = await self._database.read(lambda conn: accounts_store.customer_of(conn, account_id))
        if known is not None:
            return known

        async def look_up(since: datetime) -> client.Data | None:
            # The time span of all attempts that can have used this idempotency key.
            made = await self._stripe.customers_of_account(
                account_id, since - CLOCKS_APART_MAX, since + intents.KEY_TRUSTED_FOR + CLOCKS_APART_MAX
            )
            return next(iter(made), None)

        params: dict[str, Any] = {"metadata": {"account_id": account_id}}
        if email:
            params["email"] = email
        purpose = await self._database.read(lambda conn: store.purpose(conn, account_id))
        customer = await self._requests.perform(
            intents.Intent(account_id, purpose, "customers.create", params), look_up
        )
        customer_id, now = str(customer["id"]), self._clock.now()
        return await self._database.run(lambda conn: store.link(conn, account_id, customer_id, origin, now))
