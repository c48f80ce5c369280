"""Moving sold subscriptions to the newest catalog version: first seen, then done, one transaction for each.

Stripe is not asked and not told: it goes on charging the prices that were sold. So a subscription whose prices differ
in the newest version stays where it is; those are changed at Stripe, by a change of its plan.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, parts, versions
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import lookup, terms
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables, transactions
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import store as subscriptions_store

# Subscriptions looked at in one transaction.
PAGE_SIZE = 100

_SUBSCRIPTIONS = tables.subscriptions


@dataclass(frozen=True, slots=True)
class Over:
    """A meter of which more is used in the present period than the newest version includes; None: unlimited."""

    meter: str
    used: int
    included_before: int | None
    included_after: int
    # What happens to more of it then; None: the meter is not in the plan any more.
    beyond: str | None


@dataclass(frozen=True, slots=True)
class OpenHolds:
    """Units of a meter that are held now: up to them, settlements count under the terms of before the move."""

    meter: str
    units: int


@dataclass(frozen=True, slots=True)
class Move:
    """What moving a subscription means; `refusal`, if not empty, says why it cannot be moved."""

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
    """Yield a move for each subscription (of one account) that is not over and was sold under an older version."""
    catalogs = versions.CatalogCache()
    newest = await database.read(versions.newest)
    if newest is None:
        return
    after = ("", "")

    async def page(conn: AsyncConnection) -> list[Move]:
        rows = await conn.execute(_outdated(newest, account_id, after))
        return [await _move(conn, catalogs, row, newest, now) for row in rows.mappings().all()]

    while moves := await database.read(page):
        for move in moves:
            yield move
        after = (moves[-1].account_id, moves[-1].subscription_id)


async def apply(
    database: transactions.Transactions, seen: Move, origin: audit_store.Origin, now: datetime
) -> Move | None:
    """Move a subscription to the version that its preview named, unless that is refused by now, and return the move.

    None: there is nothing to move any more. Answers change from the next call on; what was counted stays.
    """
    catalogs = versions.CatalogCache()

    async def work(conn: AsyncConnection) -> Move | None:
        await accounts_store.lock(conn, seen.account_id)
        query = _outdated(seen.to_version, seen.account_id, ("", ""))
        found = await conn.execute(query.where(_SUBSCRIPTIONS.c.subscription_id == seen.subscription_id))
        row = found.mappings().one_or_none()
        if row is None:
            return None
        move = await _move(conn, catalogs, row, seen.to_version, now)
        if move.refusal:
            return move
        keys = {"account_id", "subscription_id", "updated_at"}
        values = {name: value for name, value in row.items() if name not in keys}
        values["catalog_version"] = move.to_version
        await subscriptions_store.save(conn, move.account_id, move.subscription_id, values, now)
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


def _outdated(version: int, account_id: str | None, after: tuple[str, str]) -> sa.Select[Any]:
    """Select subscriptions that are not over and older than a version, in key order, after a key."""
    key = (_SUBSCRIPTIONS.c.account_id, _SUBSCRIPTIONS.c.subscription_id)
    query = (
        sa.select(_SUBSCRIPTIONS)
        .where(
            _SUBSCRIPTIONS.c.is_plan,
            _SUBSCRIPTIONS.c.catalog_version < version,
            _SUBSCRIPTIONS.c.status.not_in(stripe_subscriptions.OVER),
            sa.tuple_(*key) > sa.tuple_(*(sa.literal(part) for part in after)),
        )
        .order_by(*key)
        .limit(PAGE_SIZE)
    )
    return query if account_id is None else query.where(_SUBSCRIPTIONS.c.account_id == account_id)


async def _move(
    conn: AsyncConnection, catalogs: versions.CatalogCache, row: Mapping[str, Any], version: int, now: datetime
) -> Move:
    sold, newest = await catalogs.get(conn, row["catalog_version"]), await catalogs.get(conn, version)
    refusals = _refusals(sold, newest, row["plan"], row["price"])
    refusal = next(refusals, "")
    over, holds = ((), ()) if refusal else await _consequences(conn, catalogs, row, newest, version, now)
    return Move(
        account_id=row["account_id"],
        subscription_id=row["subscription_id"],
        plan=row["plan"],
        from_version=row["catalog_version"],
        to_version=version,
        refusal=refusal,
        over=over,
        holds=holds,
    )


def _refusals(sold: model.Catalog, newest: model.Catalog, plan_key: str, price_key: str) -> Iterator[str]:
    """Yield what keeps a subscription from the newest version: all that Stripe holds must be the same in both."""
    if (sold.name, sold.currency) != (newest.name, newest.currency):
        yield f"the catalog was {sold.name} in {sold.currency} and is {newest.name} in {newest.currency}"
    if plan_key not in newest.plans:
        yield f"plan {plan_key} is gone"
        return
    old, new = sold.plan(plan_key), newest.plans[plan_key]
    if price_key not in new.prices:
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
        # Another kind of month would begin a period, and with it an allowance, in the middle of one.
        yield f"the quota period differs: {old.quota_period} as sold, {new.quota_period} now"


async def _consequences(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    row: Mapping[str, Any],
    newest: model.Catalog,
    version: int,
    now: datetime,
) -> tuple[tuple[Over, ...], tuple[OpenHolds, ...]]:
    """Return the meters of which the present period has used more than it would include after the move, and holds."""
    asked = [lookup.MeterQuery(row["account_id"], meter, "") for meter in newest.meters]
    over, holds = [], []
    for known in await lookup.read(conn, catalogs, asked, now):
        # A version that is newer still may have taken a meter away meanwhile.
        if isinstance(known, errors.BillingError):
            continue
        under = known.terms_at(now)
        if under.subscription is None or under.subscription.subscription_id != row["subscription_id"]:
            continue
        after = _moved(known, row["subscription_id"], version, newest, now).allowance(
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
    """Return the terms as they would be now after the move."""
    account_state = known.facts.account_state
    subscriptions = tuple(
        replace(one, catalog_version=version) if one.subscription_id == subscription_id else one
        for one in account_state.subscriptions
    )
    return terms.at_instant(
        replace(account_state, subscriptions=subscriptions), {**known.catalogs, version: newest}, now
    )


def _charged(plan: parts.Plan) -> dict[tuple[str, bool], Decimal]:
    """Return the exact unit price of each metered price that a subscription to a plan carries."""
    return {(one.meter, one.pay_as_you_go): one.limit.unit_price_exact for one in plan.metered_prices}


def _price(price: parts.Price) -> str:
    return f"{price.amount:f} a {price.interval}{' per seat' if price.per_seat else ''}"


def _unit(price: Decimal | None) -> str:
    return "nothing" if price is None else f"{price:f}"
