"""Changes plan, price or seats: now, with proration, or at the period's end, by a subscription schedule at Stripe.

The steps, each safe to repeat: (1) a transaction refuses the request or stores its target; (2) now: the usage so far is
sent to Stripe, the cost of the change is stored, and a single call changes the subscription; at the period's end: a
schedule is created and gets its phases; (3) the subscription is fetched and applied. A repeat after a crash uses the
stored target and cost.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import parts, versions
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.findings import store as findings_store
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents, parse, prices, sold_items, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.changes import costs, customer_confirmation, rules, stripe_change
from billing_svc.subscriptions.invoices import rules as invoices_rules
from billing_svc.subscriptions.invoices import way_out
from billing_svc.subscriptions.records import refresh_subscription

# How often a call tries to make the change: first as an earlier call judged it, then as this call judges it. If that
# is not enough, other calls change the same subscription at the same time.
ROUNDS_MAX = 3


class PlanChanges:
    """Changes plans."""

    def __init__(self, carrier: stripe_change.StripeChange, catalogs: versions.CatalogCache) -> None:
        self._carrier = carrier
        self._catalogs = catalogs

    async def preview(self, order: rules.ChangeOrder) -> costs.ChangeOutcome:
        """Return what a change would cost, without changing anything.

        Raises NotSubscribed, PlanNotFound, PlanNotSold, PriceNotFound, PriceArchived, PlanNotApplied, PlanUnchanged,
        InvalidRequest, ForeignSchedule, StripeUnavailable, StripeRefused and StripeObjectUnreadable.
        """
        now = self._carrier.clock.now()
        target = await self._carrier.database.read(lambda conn: self._choose(conn, order, now))
        return costs.from_kept(await self._cost(order, target, await self._fetch(order, target)))

    async def change(self, order: rules.ChangeOrder, origin: audit_store.Origin) -> costs.ChangeOutcome:
        """Make a change, or complete a change that an earlier call began, and return what it costs.

        Raises the errors of `preview`, and RequestIdReused, UsageNotReported, PaymentFailed and LostRace.
        """
        asked = request_ids.CallerRequest(order.account_id, order.request_id, "change_plan", order.content)
        for _ in range(ROUNDS_MAX):
            now = self._carrier.clock.now()
            known, fetched = await self._carrier.database.read(lambda conn: request_ids.find(conn, asked)), None
            if known is None or not known.is_judged:
                # A change that is refused because of the subscription's schedule is not stored, so that it can be
                # repeated.
                target = await self._carrier.database.read(lambda conn: self._choose(conn, order, now))  # noqa: B023 - awaited at once
                fetched = await self._fetch(order, target)
                known = await self._carrier.database.run(lambda conn: self._begin(conn, order, asked, origin, now))  # noqa: B023 - as above
            if known.is_closed and known.answer is not None:
                return costs.from_kept(known.answer)
            try:
                return await self._make(order, asked, known, fetched, origin)
            except errors.PaymentActionRequired:
                raise  # the change waits at Stripe for the customer
            except (errors.StripeRefused, client.NotAtStripe):
                # Nothing was changed. A repeat, perhaps days later, must not be billed from this call's instant.
                await self._carrier.database.run(lambda conn: request_ids.judge_again(conn, asked, known.target))  # noqa: B023 - as above
                if known.is_new:
                    raise
                # Stripe refused the change as an earlier call judged it; this call judges it anew and tries again.
        raise errors.LostRace("other calls made the same change at the same time; send the same call again")

    async def _make(
        self,
        order: rules.ChangeOrder,
        asked: request_ids.CallerRequest,
        known: request_ids.RememberedRequest,
        fetched: stripe_subscriptions.StripeSubscription | None,
        origin: audit_store.Origin,
    ) -> costs.ChangeOutcome:
        """Make the change at Stripe, as it was judged; `fetched` is a subscription that was just fetched."""
        target = _from_kept(known.target)
        if fetched is None or fetched.subscription_id != target.subscription_id:
            fetched = await self._fetch(order, target)
        if await self._is_outdated(target, fetched):
            raise errors.StripeRefused("the change was not made within a day, so it is judged again")
        if order.at_period_end:
            answer = known.answer or await self._keep_cost(order, asked, target, fetched)
            await self._schedule(order, target, fetched, origin)
        else:
            answer = await self._change_now(order, asked, target, fetched, known.answer, origin)
        await self._carrier.finish(asked, asdict(target), origin, answer)
        return costs.from_kept(answer)

    async def _begin(
        self,
        conn: AsyncConnection,
        order: rules.ChangeOrder,
        asked: request_ids.CallerRequest,
        origin: audit_store.Origin,
        now: datetime,
    ) -> request_ids.RememberedRequest:
        """Return the stored request; refuse a new request, or store it; one that Stripe refused is judged again."""
        known = await request_ids.find(conn, asked)
        if known is not None and known.is_judged:
            return known
        await accounts_store.lock(conn, order.account_id)
        target = await self._choose(conn, order, now)
        kept = asdict(target)
        if known is None:
            await request_ids.remember(conn, asked, kept, now)
        else:
            await request_ids.set_target(conn, asked, kept)
        changes = {
            "subscription": target.subscription_id,
            "plan": target.plan,
            "price": target.price,
            "quantity": target.quantity,
            "at_period_end": order.at_period_end,
        }
        await audit_store.append(conn, origin, order.account_id, "plan.change_requested", changes, now)
        return request_ids.RememberedRequest(kept, None, is_closed=False, is_new=True)

    async def _is_outdated(self, target: rules.ChangeTarget, fetched: stripe_subscriptions.StripeSubscription) -> bool:
        """Say whether a change whose outcome was unknown was not made, and its instant is too long ago to make it.

        Stripe has forgotten the key of that time, and the present state decides.
        """
        age_seconds = self._carrier.clock.now().timestamp() - (target.proration_at or 0)
        if target.proration_at is None or age_seconds < intents.KEY_TRUSTED_FOR.total_seconds():
            return False
        return not target.is_in(fetched, (await self._sold(fetched)).price_ids)

    async def _choose(self, conn: AsyncConnection, order: rules.ChangeOrder, now: datetime) -> rules.ChangeTarget:
        rules.require_fresh_preview(order, now)
        row = await stripe_change.held(conn, order.account_id, now)
        if not row.is_giving:
            found = await way_out.read(conn, row)
            message = f"the subscription is {row.status}, so its plan cannot be changed{found.text}"
            raise errors.NotSubscribed(message, {"account_id": order.account_id, **found.metadata})
        version = await versions.newest_published(conn)
        sold = await self._catalogs.get(conn, row.catalog_version)
        held = rules.Held(row.plan, row.price, row.quantity, row.catalog_version, sold, row.custom_price_id)
        choice = rules.choose(order, held, await self._catalogs.get(conn, version), version)
        # The present choice is valid if there is something to undo: a pending change, or items that are not as sold.
        noted = await findings_store.open_about(conn, row.account_id, row.subscription_id)
        is_as_sold = findings_store.OF_ITEMS.isdisjoint(noted)
        if choice.is_of(held) and is_as_sold and not (order.at_period_end and row.pending_plan is not None):
            message = f"the account has {row.plan} at this price and quantity already"
            raise errors.PlanUnchanged(message, {"plan": row.plan, "price": row.price})
        custom = None if choice.price else row.custom_price_id
        base, metered, interval = await _price_ids(conn, choice, custom)
        if choice.plan.key == row.plan and choice.catalog_version == row.catalog_version:
            await _require_sold(conn, choice, row, {base} if choice.price != row.price else set(), version)
        return rules.ChangeTarget(
            subscription_id=row.subscription_id,
            plan=choice.plan.key,
            price=choice.price,
            quantity=choice.quantity,
            catalog_version=choice.catalog_version,
            base_price_id=base,
            metered_price_ids=metered,
            interval=interval,
            proration_at=None if order.at_period_end else int((order.proration_at or now).timestamp()),
        )

    async def _fetch(
        self, order: rules.ChangeOrder, target: rules.ChangeTarget
    ) -> stripe_subscriptions.StripeSubscription:
        fetched = await self._carrier.fetch(target.subscription_id)
        if fetched is None:
            raise stripe_change.not_subscribed(order.account_id)
        await self._carrier.require_own_schedule(
            order.account_id, fetched, may_release_foreign=order.release_foreign_schedule
        )
        return fetched

    async def _change_now(
        self,
        order: rules.ChangeOrder,
        asked: request_ids.CallerRequest,
        target: rules.ChangeTarget,
        fetched: stripe_subscriptions.StripeSubscription,
        answer: Mapping[str, Any] | None,
        origin: audit_store.Origin,
    ) -> Mapping[str, Any]:
        # Units used before the change must be charged on the terms of that time.
        await self._carrier.flush.flush(order.account_id)
        purpose = f"change:{order.request_id}"
        await self._carrier.release_schedule(order.account_id, fetched, purpose, origin)
        # Must run before the change: afterwards Stripe can no longer preview its cost.
        answer = answer or await self._keep_cost(order, asked, target, fetched)

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self._carrier.stripe.subscription(target.subscription_id)
            found = refresh_subscription.read(data)
            return data if target.is_in(found, (await self._sold(found)).price_ids) else None

        confirmation = customer_confirmation.Confirmation(self._carrier, order.account_id, purpose, target)
        if await confirmation.has_begun():
            await confirmation.require(fetched)
            return answer
        params = {
            "subscription": target.subscription_id,
            "items": rules.item_changes(*(await self._sold(fetched)).split, target),
            "proration_behavior": "always_invoice",
            "proration_date": target.proration_at,
            # If the payment fails, Stripe does not make the change.
            "payment_behavior": "error_if_incomplete",
            "metadata": dict(target.metadata),
        }
        try:
            await self._carrier.requests.perform(
                intents.Intent(order.account_id, purpose, "subscriptions.update", params), look_up
            )
        except errors.PaymentActionRequired:
            await confirmation.begin(params)
        return answer

    async def _schedule(
        self,
        order: rules.ChangeOrder,
        target: rules.ChangeTarget,
        fetched: stripe_subscriptions.StripeSubscription,
        origin: audit_store.Origin,
    ) -> None:
        """Schedule the change for the end of the subscription's period, in place of any pending change."""
        account_id, writes, purpose = order.account_id, self._carrier.requests, f"change:{order.request_id}"
        items = await self._sold(fetched)
        if not await writes.is_known(account_id, f"{purpose}:schedule"):
            await self._carrier.release_schedule(account_id, fetched, purpose, origin)
            if target.is_in(fetched, items.price_ids):
                return
            # A change at the period's end means that the subscription continues, so a scheduled end is removed.
            await self._carrier.keep(account_id, fetched, f"{purpose}:keep")

        async def attached(_since: datetime) -> client.Data | None:
            schedule = (await self._carrier.stripe.subscription(target.subscription_id)).get("schedule")
            return schedule if isinstance(schedule, Mapping) else None

        made = intents.Intent(
            account_id,
            f"{purpose}:schedule",
            stripe_change.MAKE_SCHEDULE,
            {"from_subscription": target.subscription_id},
        )
        try:
            schedule_id = str((await writes.perform(made, attached))["id"])
        except errors.StripeRefused:
            if await attached(self._carrier.clock.now()) is None:
                raise
            message = "another change of this subscription was scheduled at the same time; send the same call again"
            raise errors.LostRace(message) from None
        schedule = await self._carrier.stripe.schedule(schedule_id)
        if _phases_of(schedule) > 1:
            return  # an earlier attempt has set the phases already

        async def planned(_since: datetime) -> client.Data | None:
            found = await self._carrier.stripe.schedule(schedule_id)
            return found if _phases_of(found) > 1 else None

        params = {
            "schedule": schedule_id,
            "end_behavior": "release",
            "phases": rules.phases(schedule, items.price_ids, target),
        }
        await writes.perform(intents.Intent(account_id, purpose, "subscription_schedules.update", params), planned)

    async def _keep_cost(
        self,
        order: rules.ChangeOrder,
        asked: request_ids.CallerRequest,
        target: rules.ChangeTarget,
        fetched: stripe_subscriptions.StripeSubscription,
    ) -> Mapping[str, Any]:
        answer = await self._cost(order, target, fetched)
        return await self._carrier.database.run(lambda conn: request_ids.keep_answer(conn, asked, answer))

    async def _cost(
        self, order: rules.ChangeOrder, target: rules.ChangeTarget, fetched: stripe_subscriptions.StripeSubscription
    ) -> Mapping[str, Any]:
        """Return the cost that Stripe's preview gives, in the stored form."""
        items = await self._sold(fetched)
        details: dict[str, Any] = {"items": rules.item_changes(*items.split, target)}
        params: dict[str, Any] = {"subscription": target.subscription_id, "subscription_details": details}
        if order.at_period_end:
            params["preview_mode"] = "recurring"
            details["proration_behavior"] = "none"
            effective_at = items.period_end(fetched)
        else:
            details |= {"proration_behavior": "always_invoice", "proration_date": target.proration_at}
            effective_at = datetime.fromtimestamp(target.proration_at or 0, UTC)
        invoice = await self._carrier.stripe.preview_invoice(params)
        fields = parse.StripeFields.of(invoice, "preview of an invoice")
        found, _ = invoices_rules.lines_from_stripe(fields.get("lines"), effective_at, fields.about)
        # At a period's end there are no prorations for a part of a period.
        lines = [line for line in found if not (order.at_period_end and line.is_proration)]
        sold = await self._carrier.database.read(
            lambda conn: prices.sold_prices(conn, {line.price_id for line in lines})
        )
        meters = {price_id: price.meter for price_id, price in sold.items()}
        totals = costs.totals(fields) if len(lines) == len(found) else None
        return costs.kept(effective_at, target.proration_at, fields.text("currency"), lines, meters, totals)

    async def _sold(self, fetched: stripe_subscriptions.StripeSubscription) -> sold_items.SoldItems:
        """Return a subscription's items by what they are to us."""
        return await self._carrier.sold_items(fetched)


async def _price_ids(
    conn: AsyncConnection, choice: rules.ChosenPrice, custom_price_id: str | None
) -> tuple[str, tuple[str, ...], str]:
    """Return a choice's base price, its metered prices, also those of pay-as-you-go, and the base price's interval.

    `custom_price_id` is a price made by hand that stays. Raises PlanNotApplied.
    """
    plan: parts.Plan = choice.plan
    base = [] if custom_price_id else [plan.base_lookup_key(choice.price)]
    metered = [price.lookup_key for price in plan.metered_prices]
    ids = await prices.prices_of_version(conn, [*base, *metered], choice.catalog_version)
    if {*base, *metered} - ids.keys():
        raise errors.PlanNotApplied(
            f"plan {plan.key} has no prices at Stripe yet; `billing-svc catalog apply` creates them",
            {"plan": plan.key, "price": choice.price},
        )
    metered_ids = tuple(ids[key] for key in metered)
    if custom_price_id is None:
        return ids[base[0]], metered_ids, plan.prices[choice.price].interval
    custom = (await prices.custom_prices(conn, [custom_price_id]))[custom_price_id]
    return custom_price_id, metered_ids, custom.interval


async def _require_sold(
    conn: AsyncConnection,
    choice: rules.ChosenPrice,
    row: subscription_records.SubscriptionRecord,
    base: set[str],
    newest: int,
) -> None:
    """Refuse prices of an older version that the subscription does not have yet and that are no longer sold.

    Raises PriceArchived.
    """
    missing = await prices.prices_of_version(conn, row.missing_meters.split(), row.catalog_version)
    if await prices.archived(conn, base | set(missing.values())):
        message = (
            f"price {choice.price} of plan {row.plan} in catalog version {row.catalog_version} is no longer sold;"
            f" newest_catalog=true changes to the prices and terms of version {newest}"
        )
        metadata = {
            "plan": row.plan,
            "price": choice.price,
            "catalog_version": str(row.catalog_version),
            "newest_catalog_version": str(newest),
        }
        raise errors.PriceArchived(message, metadata)


def _phases_of(schedule: client.Data) -> int:
    return len(parse.StripeFields.of(schedule, "subscription schedule").each("phases"))


def _from_kept(kept: Mapping[str, Any]) -> rules.ChangeTarget:
    return rules.ChangeTarget(**{**kept, "metered_price_ids": tuple(kept["metered_price_ids"])})
