"""Switching pay-as-you-go.

On a paid plan the metered prices are part of the subscription from checkout on, so that a switch is a row. On the
default plan they are on a metered-only subscription: one is made for as many times as it is switched on while there is
none, and it ends with its period once it is switched off; on again before that takes the end back. What has to be done
about it at Stripe is a duty, stored with the switch, so that no failure forgets it.
"""

import contextlib
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import parts, versions
from billing_svc.customers import create_customer
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import lookup, terms
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents, prices, subscription_records
from billing_svc.subscriptions.changes import stripe_change
from billing_svc.subscriptions.follow_ups import run_follow_ups
from billing_svc.subscriptions.records import follow_up_queue

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Switch:
    """On or off."""

    account_id: str
    request_id: str
    enabled: bool

    @property
    def asked(self) -> request_ids.CallerRequest:
        """The request, as it is remembered."""
        return request_ids.CallerRequest(self.account_id, self.request_id, "pay_as_you_go", {"enabled": self.enabled})


@dataclass(frozen=True, slots=True)
class _Needed:
    """What has to be made at Stripe before it is on: a metered-only subscription to the default plan."""

    plan: parts.Plan
    catalog_version: int
    price_ids: tuple[str, ...]
    anchor: datetime
    purpose: str


class PayAsYouGoToggle:
    """Switches pay-as-you-go."""

    def __init__(
        self,
        carrier: stripe_change.StripeChange,
        catalogs: versions.CatalogCache,
        customers: create_customer.Customers,
        duties: run_follow_ups.FollowUps,
    ) -> None:
        self._carrier = carrier
        self._catalogs = catalogs
        self._customers = customers
        self._duties = duties

    async def switch(self, switch: Switch, origin: audit_store.Origin) -> None:
        """Switch it; what is so already stays so.

        Raises PayAsYouGoNotOffered, PlanNotApplied, PaymentMethodRequired, RequestIdReused, StripeUnavailable,
        StripeRefused and LostRace.
        """
        now = self._carrier.clock.now()
        needed = await self._carrier.database.run(lambda conn: self._begin(conn, switch, origin, now))
        if needed is not None:
            subscription_id = await self._make(switch.account_id, needed, origin)
            await self._carrier.database.run(lambda conn: self._set(conn, switch, subscription_id, origin, now))
            # The events bring it as well, should this fail.
            with contextlib.suppress(errors.LostRace, errors.StripeUnavailable, client.NotAtStripe):
                await self._carrier.refresher.refresh(subscription_id, origin)
        await self._do_duties(switch.account_id)

    async def _begin(
        self, conn: AsyncConnection, switch: Switch, origin: audit_store.Origin, now: datetime
    ) -> _Needed | None:
        """Switch what can be switched here; returns what has to be made at Stripe first."""
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
        if under.subscription is not None:
            await self._set(conn, switch, under.subscription.subscription_id, origin, now)
            return None
        rows = [row for row in await subscription_records.of_account(conn, switch.account_id) if not row.is_plan]
        living = next((row for row in rows if row.goes_on(now) and row.plan == under.plan.key), None)
        if living is not None:
            await self._set(conn, switch, living.subscription_id, origin, now)
            return None
        return await _needed(conn, under, rows)

    async def _set(
        self, conn: AsyncConnection, switch: Switch, under: str | None, origin: audit_store.Origin, now: datetime
    ) -> None:
        """Switch here, note what has to be done at Stripe, and close the request."""
        before = await accounts_store.pay_as_you_go_under(conn, switch.account_id)
        await request_ids.close(conn, switch.asked, now)
        changed = await accounts_store.set_pay_as_you_go(conn, switch.account_id, under)
        for row in await subscription_records.of_account(conn, switch.account_id):
            concerned = not row.is_plan and not row.is_over and row.subscription_id in {before, under}
            # Its end may have been scheduled in the portal; on means that it goes on.
            if concerned and (changed or (under is not None and row.will_end)):
                await follow_up_queue.renew(conn, switch.account_id, row.subscription_id, now)
        if not changed:
            return
        # A level may be billable under other terms now.
        await gauges_store.reopen(conn, switch.account_id, now)
        changes = {"enabled": under is not None, "subscription": under or before}
        await audit_store.append(conn, origin, switch.account_id, "pay_as_you_go.switched", changes, now)

    async def _make(self, account_id: str, needed: _Needed, origin: audit_store.Origin) -> str:
        """Make the metered-only subscription; however many ask at once, it is one."""
        customer_id = await self._customers.ensure(account_id, "", origin)
        overlay = needed.plan.pay_as_you_go
        params: dict[str, Any] = {
            "customer": customer_id,
            "items": [{"price": price_id} for price_id in needed.price_ids],
            # Its periods are the quota's; the first one is short, and nothing is charged for its shortness.
            # In whole seconds: what is stamped with the last one of the quota period must not fall behind its end.
            "billing_cycle_anchor": math.ceil(needed.anchor.timestamp()),
            "proration_behavior": "none",
            "metadata": {
                "account_id": account_id,
                "plan": needed.plan.key,
                "catalog_version": str(needed.catalog_version),
                "purpose": needed.purpose,
            },
        }
        if overlay is not None and overlay.require_payment_method:
            params |= await self._payment_method(account_id, customer_id)

        async def look_up(_since: datetime) -> client.Data | None:
            found = await self._carrier.stripe.subscriptions_of(customer_id)
            return next((one for one in found if one["metadata"].get("purpose") == needed.purpose), None)

        intent = intents.Intent(account_id, needed.purpose, "subscriptions.create", params)
        return str((await self._carrier.requests.perform(intent, look_up))["id"])

    async def _payment_method(self, account_id: str, customer_id: str) -> dict[str, str]:
        """Return what pays for it, where that must be named. Raises PaymentMethodRequired."""
        customer = await self._carrier.stripe.customer(customer_id)
        settings = customer.get("invoice_settings") or {}
        if settings.get("default_payment_method") or customer.get("default_source"):
            return {}
        on_file = await self._carrier.stripe.payment_methods_of(customer_id)
        if not on_file:
            message = "a payment method must be on file first; CreatePortalSession leads to where it is entered"
            raise errors.PaymentMethodRequired(message, {"account_id": account_id})
        return {"default_payment_method": str(on_file[0]["id"])}

    async def _do_duties(self, account_id: str) -> None:
        """Do at once what is to be done at Stripe; the worker does what cannot be done now."""
        try:
            for subscription_id in await self._carrier.database.read(
                lambda conn: follow_up_queue.of_account(conn, account_id, self._carrier.clock.now())
            ):
                await self._duties.do(account_id, subscription_id)
        except errors.BillingError as error:
            _log.info("duty_left_to_worker", account=account_id, error=error.message)


async def _needed(
    conn: AsyncConnection, under: terms.EffectiveTerms, rows: list[subscription_records.SubscriptionRecord]
) -> _Needed:
    """Return what has to be made. Raises PlanNotApplied."""
    keys = [one.lookup_key for one in under.plan.charged(pay_as_you_go=True)]
    ids = await prices.prices_of_version(conn, keys, under.catalog_version)
    if set(keys) - ids.keys():
        raise errors.PlanNotApplied(
            f"plan {under.plan.key} is not at Stripe yet; `billing-svc catalog apply` brings it there",
            {"plan": under.plan.key, "price": ""},
        )
    # One for each time that there is none: those that switch at once, or again after a crash, mean the same one.
    last = rows[0].subscription_id if rows else "first"
    return _Needed(
        plan=under.plan,
        catalog_version=under.catalog_version,
        price_ids=tuple(ids[key] for key in keys),
        anchor=under.period.end,
        purpose=f"pay_as_you_go:{last}",
    )
