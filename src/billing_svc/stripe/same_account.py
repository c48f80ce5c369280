"""Tells why Stripe lacks an object: it was deleted, or the key belongs to another account, which lacks every object."""

from billing_svc.platform import errors
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, prices


async def require(database: transactions.Transactions, stripe: client.Stripe, missing_id: str) -> None:
    """Return if Stripe has a price that this service made; `missing_id` is an object that Stripe does not have.

    Raises StripeAccountMismatch and StripeUnavailable.
    """
    made = await database.read(lambda conn: prices.current(conn, client.LOOKUP_KEYS_MAX))
    found = await stripe.prices(list(made))
    if not any(made.get(str(price.get("lookup_key"))) == price.get("id") for price in found):
        raise errors.StripeAccountMismatch(
            f"Stripe has neither {missing_id} nor any price of the catalog: the key belongs to another Stripe account, "
            "or the account's test data was deleted; nothing was changed",
            {"stripe_object": missing_id},
        )
