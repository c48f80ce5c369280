"""Making a usage summary: of the present period from the terms in force, of a past period from its counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, versions
from billing_svc.metering.quota import lookup, terms
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.usage import rules as usage_rules
from billing_svc.metering.usage_summary import rules, store
from billing_svc.platform import errors


@dataclass(frozen=True, slots=True)
class SummaryQuery:
    """Which summary is asked for; `at` None: the present period; no `meters`: all of the newest catalog."""

    account_id: str
    at: datetime | None = None
    meters: tuple[str, ...] = ()
    with_shares: bool = False


async def summarize(
    conn: AsyncConnection, catalogs: versions.CatalogCache, query: SummaryQuery, now: datetime
) -> rules.UsageSummary:
    """Return a usage summary in catalog order. Raises MeterNotFound, and InvalidRequest if `at` is out of range.

    Costs one SQL statement for the present period, two more for a past period, one more for the shares.
    """
    at = _checked(query.at, now)
    known = await _read(conn, catalogs, query, now)
    current = next(iter(known.values())).terms_at(now)
    if at >= current.period.start:
        statement = present(list(known.values()), now)
    else:
        # Subscriptions of a past period may have ended before the horizon of today's read.
        known = await _read(conn, catalogs, query, at)
        statement = await _past(conn, catalogs, query.account_id, known, current, at)
    return await _with_shares(conn, query.account_id, statement) if query.with_shares else statement


def present(known: Sequence[lookup.MeterState], now: datetime) -> rules.UsageSummary:
    """Return the usage summary of an account's present period, from the states of its meters."""
    current = known[0].terms_at(now)
    return rules.UsageSummary(current, tuple(_present(one, current, now) for one in known))


def _checked(at: datetime | None, now: datetime) -> datetime:
    """Return the instant asked for, which may lie ahead by the clock tolerance."""
    if at is None:
        return now
    if at > now + usage_rules.FUTURE_TOLERANCE:
        problem = f"must not lie in the future (it is {now.isoformat()})"
        raise errors.InvalidRequest([errors.FieldViolation("period_containing", problem)])
    if at < now - usage_rules.RETENTION:
        problem = f"must not lie more than {usage_rules.RETENTION.days} days back"
        raise errors.InvalidRequest([errors.FieldViolation("period_containing", problem)])
    return min(at, now)


async def _read(
    conn: AsyncConnection, catalogs: versions.CatalogCache, query: SummaryQuery, at: datetime
) -> dict[str, lookup.MeterState]:
    """Return the state of each meter as of the horizon before `at`, in catalog order."""
    while True:
        catalog = await catalogs.latest(conn)
        asked = [lookup.MeterQuery(query.account_id, meter, "") for meter in query.meters or catalog.meters]
        found = await lookup.read(conn, catalogs, asked, at)
        # The read may have loaded a newer catalog, which has other meters.
        if query.meters or await catalogs.latest(conn) is catalog:
            break
    known = {}
    for one in found:
        if isinstance(one, errors.BillingError):
            raise one
        known[one.meter] = one
    order = list(next(iter(known.values())).newest.meters)
    return {meter: known[meter] for meter in sorted(known, key=order.index)}


def _present(known: lookup.MeterState, under: terms.EffectiveTerms, now: datetime) -> rules.MeterSummary:
    return _line(known, under, known.allowance(under, now), known.counter_of(under))


async def _past(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    account_id: str,
    known: Mapping[str, lookup.MeterState],
    current: terms.EffectiveTerms,
    at: datetime,
) -> rules.UsageSummary:
    first = next(iter(known.values()))
    derived = first.terms_at(at)
    # Counters of all meters, even if few are asked for, because the period is the account's.
    kept = await store.kept_counters(conn, account_id, first.newest.meters, at)
    breaks = [*terms.breaks(first.facts.account_state, first.catalogs), current.period.start]
    period = rules.past_period(kept, breaks, derived.period, at)
    rows = sorted((one for one in kept if one.period.start == period.start), key=lambda one: one.updated_at)
    loaded = {row.catalog_version: await catalogs.get(conn, row.catalog_version) for row in rows}
    derived = replace(derived, period=period)
    under = _terms_of(rows[-1], derived, loaded) if rows else derived
    by_meter = {row.meter: row for row in rows}
    lines = [_past_line(one, by_meter.get(meter), under, loaded) for meter, one in known.items()]
    return rules.UsageSummary(under, tuple(lines))


def _terms_of(
    row: rules.KeptCounter, derived: terms.EffectiveTerms, catalogs: Mapping[int, model.Catalog]
) -> terms.EffectiveTerms:
    return replace(
        derived,
        catalog_version=row.catalog_version,
        catalog=catalogs[row.catalog_version],
        plan=catalogs[row.catalog_version].plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
    )


def _past_line(
    known: lookup.MeterState,
    row: rules.KeptCounter | None,
    under: terms.EffectiveTerms,
    catalogs: Mapping[int, model.Catalog],
) -> rules.MeterSummary:
    """Return a meter's entry under the terms stored with its counter; without one, under the period's last terms."""
    if row is not None:
        under = _terms_of(row, under, catalogs)
    allowance = under.allowance(known.meter, None, under.period.start)
    counter = quota_rules.Counter()
    if row is not None:
        counter = row.counter
        allowance = replace(allowance, included=row.included, overridden=row.overridden)
    if known.is_gauge and counter.level is None:
        counter = replace(counter, level=0)
    return _line(known, under, allowance, counter)


def _line(
    known: lookup.MeterState,
    under: terms.EffectiveTerms,
    allowance: terms.Allowance,
    counter: quota_rules.Counter,
) -> rules.MeterSummary:
    return rules.MeterSummary(
        meter=known.meter,
        definition=known.newest.meters[known.meter],
        under=under,
        allowance=allowance,
        counter=counter,
        grace_ends_at=counter.grace_ends_at(allowance.included, under.catalog.grace_period),
        override=known.facts.override,
    )


async def _with_shares(conn: AsyncConnection, account_id: str, statement: rules.UsageSummary) -> rules.UsageSummary:
    """Add the shares of consumables; the level of a gauge is no sum of events."""
    meters = [line.meter for line in statement.lines if line.definition.kind == "consumable"]
    shares: Sequence[rules.OperationShare] = ()
    if meters:
        shares = await store.shares(conn, account_id, meters, statement.under.period.start)
    lines = [replace(line, shares=tuple(one for one in shares if one.meter == line.meter)) for line in statement.lines]
    return replace(statement, lines=tuple(lines))
