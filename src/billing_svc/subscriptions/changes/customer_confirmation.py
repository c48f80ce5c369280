"""A change whose payment the customer's bank wants the customer to confirm (3-D Secure).

Stripe can hold such a change as the subscription's pending update: it makes the change when its invoice is paid on the
hosted page, and drops it if that takes too long. Until then the subscription stays as it is.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from billing_svc.platform import errors
from billing_svc.stripe import client, intents, parse
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.changes import rules, stripe_change
from billing_svc.subscriptions.records import refresh_subscription


class Confirmation:
    """The confirmation of a change that was judged for an instant; another judgement has its own confirmation."""

    def __init__(
        self, carrier: stripe_change.StripeChange, account_id: str, purpose: str, target: rules.ChangeTarget
    ) -> None:
        self._carrier = carrier
        self._account_id = account_id
        self._target = target
        self._purpose = f"{purpose}:confirm:{target.proration_at}"

    async def has_begun(self) -> bool:
        """Say whether Stripe was asked to hold the change."""
        return await self._carrier.requests.is_known(self._account_id, self._purpose)

    async def begin(self, params: Mapping[str, Any]) -> None:
        """Have Stripe hold a change that it refused to make without the customer; `params` are the refused ones.

        Returns if Stripe made the change after all. Raises PaymentActionRequired, and the errors of `require`.
        """

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self._carrier.stripe.subscription(self._target.subscription_id)
            return data if await self._is_made(refresh_subscription.read(data)) or data.get("pending_update") else None

        held = {**params, "payment_behavior": "pending_if_incomplete"}
        await self._carrier.requests.perform(
            intents.Intent(self._account_id, self._purpose, "subscriptions.update", held), look_up
        )
        data = await self._carrier.stripe.subscription(self._target.subscription_id)
        await self._require(refresh_subscription.read(data), data)

    async def require(self, fetched: stripe_subscriptions.StripeSubscription) -> None:
        """Return if the customer has confirmed the payment, so that the change is made.

        Raises PaymentActionRequired while Stripe holds the change, and PaymentFailed if it was dropped.
        """
        await self._require(fetched, await self._carrier.stripe.subscription(fetched.subscription_id))

    async def _is_made(self, fetched: stripe_subscriptions.StripeSubscription) -> bool:
        return self._target.is_in(fetched, (await self._carrier.sold_items(fetched)).price_ids)

    async def _require(self, fetched: stripe_subscriptions.StripeSubscription, data: client.Data) -> None:
        if await self._is_made(fetched):
            return
        pending = data.get("pending_update")
        if not pending:
            raise errors.PaymentFailed(
                "the customer did not confirm the payment in time", {"stripe_code": "", "stripe_param": ""}
            )
        invoice_id = parse.optional_id(data.get("latest_invoice"))
        page = await self._carrier.stripe.invoice(invoice_id) if invoice_id is not None else {}
        found = {
            "payment_url": parse.optional_text(page.get("hosted_invoice_url")),
            "invoice_id": invoice_id,
            "expires_at": _told(pending.get("expires_at")),
        }
        raise errors.PaymentActionRequired(
            "the customer's bank wants the customer to confirm the payment on the page at payment_url; then the change "
            "is made, and the same call returns its answer",
            {name: value for name, value in found.items() if value},
        )


def _told(seconds: object) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if isinstance(seconds, int) else ""
