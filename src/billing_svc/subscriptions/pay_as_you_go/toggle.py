"""Switches pay-as-you-go on and off.

On a paid plan the metered prices are in the subscription from checkout on, so a switch changes only a row. On the
default plan they are in a metered-only subscription: switching on creates it if there is none, switching off lets it
end with its period, and switching on before that end removes the scheduled end. The write at Stripe is a follow-up,
stored in the switch's transaction, so that no failure loses it.
"""

import contextlib
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import parts, versions
from billing_svc.customers import create_customer, payment_methods
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import lookup, terms
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents, parse, prices, subscription_records
from billing_svc.subscriptions.changes import stripe_change
from billing_svc.subscriptions.follow_ups import run_follow_ups
from billing_svc.subscriptions.records import follow_up_queue

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Switch:
    """A caller's request to switch pay-as-you-go on or off."""

    account_id: str
    request_id: str
    enabled: bool

    @property
    def asked(self) -> request_ids.CallerRequest:
        """The request in its stored form."""
        return request_ids.CallerRequest(self.account_id, self.request_id, "pay_as_you_go", {"enabled": self.enabled})


@dataclass(frozen=True, slots=True)
class _Needed:
    """What to create at Stripe before it can be on: a metered-only subscription to the default plan."""

    plan: parts.Plan
    catalog_version: int
    price_ids: tuple[str, ...]
    anchor: datetime
    purpose: str
    # The account's last subscription, whose payment method is preferred; None if it had none.
    last_subscription_id: str | None


class PayAsYouGoToggle:
    """Switches pay-as-you-go."""

    def __init__(
        self,
        carrier: stripe_change.StripeChange,
        catalogs: versions.CatalogCache,
        customers: create_customer.Customers,
        follow_ups: run_follow_ups.FollowUps,
    ) -> None:
        self._carrier = carrier
        self._catalogs = catalogs
        self._customers = customers
        self._follow_ups = follow_ups

    async def switch(self, switch: Switch, origin: audit_store.Origin) -> None:
        """Switch it; if it is in the requested state already, nothing changes.

        Raises PayAsYouGoNotOffered, ItemsMissing, PlanNotApplied, PaymentMethodRequired, RequestIdReused,
        StripeUnavailable, StripeRefused and LostRace.
        """
        now = self._carrier.clock.now()
        needed = await self._carrier.database.run(lambda conn: self._begin(conn, switch, origin, now))
        if needed is not None:
            subscription_id = await self._make(switch.account_id, needed, origin)
            await self._carrier.database.run(lambda conn: self._set(conn, switch, subscription_id, origin, now))
            # If this fails, Stripe's events bring the same update.
            expected = (errors.LostRace, errors.StripeUnavailable, errors.StripeObjectUnreadable, client.NotAtStripe)
            with contextlib.suppress(*expected):
                await self._carrier.refresher.refresh(subscription_id, origin)
        await self._run_follow_ups(switch.account_id)

    async def _begin(
        self, conn: AsyncConnection, switch: Switch, origin: audit_store.Origin, now: datetime
    ) -> _Needed | None:
        """Switch if that needs only a row here; else return what must be created at Stripe first."""
        known = await request_ids.find(conn, switch.asked)
        if known is not None and known.is_closed:
            return None
        await accounts_store.insert_missing(conn, {switch.account_id}, now)
        await accounts_store.lock(conn, switch.account_id)
        if known is None:
            await request_ids.remember(conn, switch.asked, {}, now)
        if not switch.enabled:
            await self._set(conn, switch, None, origin, now)
            return None
        under = (await lookup.read_account_state(conn, self._catalogs, switch.account_id, now)).terms_at(now)
        if under.plan.pay_as_you_go is None:
            message = f"plan {under.plan.key} has no pay-as-you-go"
            raise errors.PayAsYouGoNotOffered(message, {"plan": under.plan.key})
        _require_items(under)
        if under.subscription is not None:
            await self._set(conn, switch, under.subscription.subscription_id, origin, now)
            return None
        held = await subscription_records.of_account(conn, switch.account_id)
        rows = [row for row in held if not row.is_plan]
        living = next((row for row in rows if row.goes_on(now) and row.plan == under.plan.key), None)
        if living is not None:
            _refuse_missing(living.subscription_id, under.plan, living.missing_meters)
            await self._set(conn, switch, living.subscription_id, origin, now)
            return None
        return await _needed(conn, under, rows, held[0].subscription_id if held else None)

    async def _set(
        self, conn: AsyncConnection, switch: Switch, under: str | None, origin: audit_store.Origin, now: datetime
    ) -> None:
        """Switch the account here, store the follow-ups, and close the request."""
        before = await accounts_store.pay_as_you_go_under(conn, switch.account_id)
        await request_ids.close(conn, switch.asked, now)
        changed = await accounts_store.set_pay_as_you_go(conn, switch.account_id, under)
        for row in await subscription_records.of_account(conn, switch.account_id):
            concerned = not row.is_plan and not row.is_over and row.subscription_id in {before, under}
            # The customer may have scheduled its end in the portal; switching on removes that end.
            if concerned and (changed or (under is not None and row.will_end)):
                await follow_up_queue.renew(conn, switch.account_id, row.subscription_id, now)
        if not changed:
            return
        # The units of a gauge may be billable under other terms now.
        await gauges_store.reopen(conn, switch.account_id, now)
        changes = {"enabled": under is not None, "subscription": under or before}
        await audit_store.append(conn, origin, switch.account_id, "pay_as_you_go.switched", changes, now)

    async def _make(self, account_id: str, needed: _Needed, origin: audit_store.Origin) -> str:
        """Create the metered-only subscription; concurrent calls create a single subscription."""
        customer_id = await self._customers.ensure(account_id, "", origin)
        payer = await payment_methods.payer(self._carrier.stripe, customer_id, needed.last_subscription_id)
        overlay = needed.plan.pay_as_you_go
        if payer is None and overlay is not None and overlay.require_payment_method:
            message = "the customer has no payment method; it can be added on the page of CreatePortalSession"
            raise errors.PaymentMethodRequired(message, {"account_id": account_id})
        params: dict[str, Any] = {
            "customer": customer_id,
            "items": [{"price": price_id} for price_id in needed.price_ids],
            # Its billing periods are the quota periods; its first period is shorter, and is not prorated. Rounded up to
            # a whole second: the timestamp of the quota period's last second must lie inside the billing period.
            "billing_cycle_anchor": math.ceil(needed.anchor.timestamp()),
            "proration_behavior": "none",
            "metadata": {
                "account_id": account_id,
                "plan": needed.plan.key,
                "catalog_version": str(needed.catalog_version),
                "purpose": needed.purpose,
            },
            **(payer or {}),
        }

        async def look_up(_since: datetime) -> client.Data | None:
            found = await self._carrier.stripe.subscriptions_of(customer_id)
            return next(
                (one for one in found if parse.nested(one, "metadata", "purpose") == needed.purpose),
                None,
            )

        intent = intents.Intent(account_id, needed.purpose, "subscriptions.create", params)
        return str((await self._carrier.requests.perform(intent, look_up))["id"])

    async def _run_follow_ups(self, account_id: str) -> None:
        """Run the account's follow-ups now; the worker runs those that fail."""
        try:
            for subscription_id in await self._carrier.database.read(
                lambda conn: follow_up_queue.of_account(conn, account_id, self._carrier.clock.now())
            ):
                await self._follow_ups.do(account_id, subscription_id)
        except errors.BillingError as error:
            _log.info("duty_left_to_worker", account=account_id, error=error.message)


def _require_items(under: terms.EffectiveTerms) -> None:
    """Refuse to switch on what the plan's subscription has no items for. Raises ItemsMissing."""
    if under.subscription is not None:
        _refuse_missing(under.subscription.subscription_id, under.plan, under.missing_meters)


def _refuse_missing(subscription_id: str, plan: parts.Plan, missing_meters: str) -> None:
    needed = {price.lookup_key for price in plan.charged(pay_as_you_go=True)}
    missing = " ".join(sorted(needed & set(missing_meters.split())))
    if missing:
        message = f"subscription {subscription_id} has no items at Stripe that charge {missing}"
        raise errors.ItemsMissing(message, {"subscription_id": subscription_id, "missing": missing})


async def _needed(
    conn: AsyncConnection,
    under: terms.EffectiveTerms,
    rows: list[subscription_records.SubscriptionRecord],
    last_subscription_id: str | None,
) -> _Needed:
    """Return what must be created. Raises PlanNotApplied."""
    keys = [price.lookup_key for price in under.plan.charged(pay_as_you_go=True)]
    ids = await prices.prices_of_version(conn, keys, under.catalog_version)
    if set(keys) - ids.keys():
        raise errors.PlanNotApplied(
            f"plan {under.plan.key} has no prices at Stripe yet; `billing-svc catalog apply` creates them",
            {"plan": under.plan.key, "price": ""},
        )
    # The key is the last subscription's id: concurrent calls, or a repeat after a crash, create the same subscription.
    last = rows[0].subscription_id if rows else "first"
    return _Needed(
        plan=under.plan,
        catalog_version=under.catalog_version,
        price_ids=tuple(ids[key] for key in keys),
        anchor=under.period.end,
        purpose=f"pay_as_you_go:{last}",
        last_subscription_id=last_subscription_id,
    )
