"""Stripe's limits on the new invoices of a subscription, if a control route has set them."""

from stripe_sandbox import errors
from stripe_sandbox.api.context import Context

LIMITED = "limits_invoices"
"""The stored fact that is 1 if the new invoices of a subscription are limited."""

LIMITS = {60: 10, 24 * 3600: 20}
"""The most new invoices of a subscription in each number of seconds: 10 in a minute, 20 in a day."""


def check(context: Context, subscription_id: str) -> None:
    """Raise TooMany if the subscription cannot have another invoice now."""
    if not context.work.fact(LIMITED):
        return
    for seconds, most in LIMITS.items():
        (count,) = context.work.connection.execute(
            "SELECT count(*) FROM objects WHERE kind = 'invoice' AND created > ?"
            " AND json_extract(body, '$.parent.subscription_details.subscription') = ?",
            (context.now - seconds, subscription_id),
        ).fetchone()
        if count >= most:
            raise errors.TooMany("Too many new invoices of this subscription.", code="rate_limit")
