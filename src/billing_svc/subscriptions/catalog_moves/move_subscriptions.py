"""Moves sold subscriptions to the newest catalog version: a preview first, then a transaction for each subscription.

Stripe is not involved: it continues to charge the prices that were sold. So a subscription whose prices differ in the
newest version is refused; a change of its plan changes prices at Stripe.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, parts, versions
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import lookup, terms
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import subscription_records

# Subscriptions that one transaction reads.
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class Over:
    """A meter whose usage in the present period exceeds what the newest version includes; None means unlimited."""

    meter: str
    used: int
    included_before: int | None
    included_after: int
    # What the newest version does with usage beyond the included; None: its plan does not have the meter.
    beyond: str | None


@dataclass(frozen=True, slots=True)
class OpenHolds:
    """Units of a meter that are held now: up to them, settlements count under the terms of before the move."""

    meter: str
    units: int


@dataclass(frozen=True, slots=True)
class Move:
    """The effect of moving a subscription; a non-empty `refusal` says why it cannot be moved."""

    account_id: str
    subscription_id: str
    plan: str
    from_version: int
    to_version: int
    refusal: str
    over: tuple[Over, ...]
    holds: tuple[OpenHolds, ...]


async def preview(
    database: transactions.Transactions, now: datetime, account_id: str | None = None
) -> AsyncIterator[Move]:
    """Yield a move for each subscription (of one account, if given) that is not over and has an older version."""
    catalogs = versions.CatalogCache()
    newest = await database.read(versions.newest)
    if newest is None:
        return
    after = ("", "")

    async def page(conn: AsyncConnection) -> list[Move]:
        rows = await subscription_records.outdated(conn, newest, account_id, after, PAGE_SIZE)
        return [await _move(conn, catalogs, row, newest, now) for row in rows]

    while moves := await database.read(page):
        for move in moves:
            yield move
        after = (moves[-1].account_id, moves[-1].subscription_id)


async def apply(
    database: transactions.Transactions, seen: Move, origin: audit_store.Origin, now: datetime
) -> Move | None:
    """Move a subscription to the version of its preview and return the move, which may now have a refusal.

    Returns None if there is nothing to move any more. The new terms hold from the next call on; counted usage stays.
    """
    catalogs = versions.CatalogCache()

    async def work(conn: AsyncConnection) -> Move | None:
        await accounts_store.lock(conn, seen.account_id)
        row = await subscription_records.find(conn, seen.account_id, seen.subscription_id)
        if row is None or not row.is_plan or row.is_over or row.catalog_version >= seen.to_version:
            return None
        move = await _move(conn, catalogs, row, seen.to_version, now)
        if move.refusal:
            return move
        await subscription_records.save(conn, replace(row, catalog_version=move.to_version), now)
        await gauges_store.reopen(conn, move.account_id, now)
        changes = {
            "subscription": move.subscription_id,
            "plan": move.plan,
            "from_version": move.from_version,
            "to_version": move.to_version,
        }
        await audit_store.append(conn, origin, move.account_id, "subscription.moved", changes, now)
        return move

    return await database.run(work)


async def _move(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    row: subscription_records.SubscriptionRecord,
    version: int,
    now: datetime,
) -> Move:
    sold, newest = await catalogs.get(conn, row.catalog_version), await catalogs.get(conn, version)
    refusals = _refusals(sold, newest, row.plan, row.price)
    refusal = next(refusals, "")
    if refusal and row.plan in newest.plans:
        refusal += "; ChangePlan with newest_catalog moves it, with the new prices"
    over, holds = ((), ()) if refusal else await _consequences(conn, catalogs, row, newest, version, now)
    return Move(
        account_id=row.account_id,
        subscription_id=row.subscription_id,
        plan=row.plan,
        from_version=row.catalog_version,
        to_version=version,
        refusal=refusal,
        over=over,
        holds=holds,
    )


def _refusals(sold: model.Catalog, newest: model.Catalog, plan_key: str, price_key: str) -> Iterator[str]:
    """Yield the reasons against a move: everything that Stripe holds must be equal in both versions."""
    if (sold.name, sold.currency) != (newest.name, newest.currency):
        yield f"the catalog was {sold.name} in {sold.currency} and is {newest.name} in {newest.currency}"
    if plan_key not in newest.plans:
        yield f"plan {plan_key} is gone"
        return
    old, new = sold.plan(plan_key), newest.plans[plan_key]
    if not price_key:
        pass  # a price that was made by hand is in no version
    elif price_key not in new.prices:
        yield f"price {price_key} is gone"
    elif old.prices[price_key] != new.prices[price_key]:
        yield f"price {price_key} differs: {_price(old.prices[price_key])} as sold, {_price(new.prices[price_key])} now"
    before, after = _charged(old), _charged(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            meter = f"{key[0]} with pay-as-you-go" if key[1] else key[0]
            prices = f"{_unit(before.get(key))} as sold, {_unit(after.get(key))} now"
            yield f"the charge for a unit of {meter} differs: {prices}"
    if old.quota_period != new.quota_period:
        # Another quota period would begin a new period, with a new allowance, in the middle of the present period.
        yield f"the quota period differs: {old.quota_period} as sold, {new.quota_period} now"


async def _consequences(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    row: subscription_records.SubscriptionRecord,
    newest: model.Catalog,
    version: int,
    now: datetime,
) -> tuple[tuple[Over, ...], tuple[OpenHolds, ...]]:
    """Return the meters that have used more than the plan includes after the move, and the open holds."""
    asked = [lookup.MeterQuery(row.account_id, meter, "") for meter in newest.meters]
    over, holds = [], []
    for known in await lookup.read(conn, catalogs, asked, now):
        # A still newer version may have removed the meter since the preview.
        if isinstance(known, errors.BillingError):
            continue
        under = known.terms_at(now)
        if under.subscription is None or under.subscription.subscription_id != row.subscription_id:
            continue
        after = _moved(known, row.subscription_id, version, newest, now).allowance(
            known.meter, known.facts.override, now
        )
        if known.facts.held:
            holds.append(OpenHolds(known.meter, known.facts.held))
        used = known.counter_of(under).consumed
        if after.included is not None and used > after.included:
            before = known.allowance(under, now).included
            beyond = None if after.limit is None else after.limit.beyond
            over.append(Over(known.meter, used, before, after.included, beyond))
    return tuple(over), tuple(holds)


def _moved(
    known: lookup.MeterState, subscription_id: str, version: int, newest: model.Catalog, now: datetime
) -> terms.EffectiveTerms:
    """Return the terms that would hold now after the move."""
    account_state = known.facts.account_state
    subscriptions = tuple(
        replace(subscription, catalog_version=version)
        if subscription.subscription_id == subscription_id
        else subscription
        for subscription in account_state.subscriptions
    )
    return terms.effective_terms(
        replace(account_state, subscriptions=subscriptions), {**known.catalogs, version: newest}, now
    )


def _charged(plan: parts.Plan) -> dict[tuple[str, bool], Decimal]:
    """Return the exact unit price of each metered price of a plan, by (meter, whether it needs pay-as-you-go)."""
    return {(price.meter, price.pay_as_you_go): price.limit.unit_price_exact for price in plan.metered_prices}


def _price(price: parts.Price) -> str:
    return f"{price.amount:f} a {price.interval}{' per seat' if price.per_seat else ''}"


def _unit(price: Decimal | None) -> str:
    return "nothing" if price is None else f"{price:f}"
