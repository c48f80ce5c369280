"""Which payment method pays an invoice or a subscription that we create ourselves.

Checkout puts the card on the subscription that it sells, and not on the customer. So Stripe finds no card for another
invoice or subscription of the same customer, unless that invoice or subscription names the card.
"""

from billing_svc.platform import errors
from billing_svc.stripe import client


async def payer(stripe: client.Stripe, customer_id: str, subscription_id: str | None) -> dict[str, str] | None:
    """Return the parameter that names what pays; empty if Stripe finds it by itself, None if there is none.

    In this order: the payment method of the subscription, the customer's default, any that is attached. Raises
    CustomerMissing if the customer was deleted or Stripe has no such customer, and StripeUnavailable.
    """
    try:
        customer = await stripe.customer(customer_id)
    except client.NotAtStripe as error:
        raise errors.CustomerMissing(customer_id) from error
    if customer.get("deleted"):
        raise errors.CustomerMissing(customer_id)
    attached = [str(found["id"]) for found in await stripe.payment_methods_of(customer_id)]
    if attached and subscription_id is not None:
        named = await _of_subscription(stripe, subscription_id)
        if named in attached:
            return {"default_payment_method": named}
    settings = customer.get("invoice_settings") or {}
    if settings.get("default_payment_method") or customer.get("default_source"):
        return {}
    return {"default_payment_method": attached[0]} if attached else None


async def _of_subscription(stripe: client.Stripe, subscription_id: str) -> str:
    try:
        subscription = await stripe.subscription(subscription_id)
    except client.NotAtStripe:
        return ""
    return str(subscription.get("default_payment_method") or "")
