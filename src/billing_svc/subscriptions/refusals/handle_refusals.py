"""Runs a caller's operation. If Stripe refuses it, removes the cause if possible; else says in the error what it is."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from billing_svc.platform import errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import prices
from billing_svc.subscriptions.refusals import gone_customers

T = TypeVar("T")


class RefusalHandling:
    """Runs operations, each of which may be repeated."""

    def __init__(self, database: transactions.Transactions, gone: gone_customers.GoneCustomers) -> None:
        self._database = database
        self._gone_customers = gone

    async def run(self, account_id: str, operation: Callable[[], Awaitable[T]], origin: audit_store.Origin) -> T:
        """Return the operation's result; after a customer was deleted at Stripe, run it again without that customer.

        Raises the operation's errors, with what a caller needs about the account and the price, and
        StripeAccountMismatch.
        """
        try:
            try:
                return await operation()
            except errors.CustomerMissing as error:
                # If the customer is not deleted, another call has unlinked it, or the cause has passed: run once more.
                await self._gone_customers.unlink_if_deleted(error.customer_id, origin)
            return await operation()
        except (errors.PaymentMethodRequired, errors.PaymentActionRequired, errors.StripeAccountMismatch) as error:
            raise type(error)(error.message, {**error.metadata, "account_id": account_id}) from error
        except errors.PriceArchivedAtStripe as error:
            raise await self._named(error) from error

    async def _named(self, error: errors.PriceArchivedAtStripe) -> errors.PriceArchivedAtStripe:
        price_id = error.metadata.get("stripe_object", "")
        sold = (await self._database.read(lambda conn: prices.sold_prices(conn, [price_id]))).get(price_id)
        if sold is None:
            return error
        what = f"the price of meter {sold.meter}" if sold.meter else f"price {sold.price}"
        return errors.PriceArchivedAtStripe(
            f"{what} of plan {sold.plan} ({price_id}), or its product, is archived at Stripe; activate it there, or "
            "run `billing-svc catalog apply`, which makes a new price",
            {
                **error.metadata,
                "plan": sold.plan,
                "price": sold.price,
                **({"meter": sold.meter} if sold.meter else {}),
            },
        )
