"""Recording a batch of usage events in the caller's transaction: look up and lock, find each period, count, write.

A batch of any size costs two round trips; holds and gauges cost more. Locks are taken in the order that `metering`
gives.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.alerts import store as alerts_store
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.gauges import rules as gauges_rules
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import holds, lookup, terms
from billing_svc.metering.quota import store as quota_store
from billing_svc.metering.reservations import store as reservations_store
from billing_svc.metering.usage import batch_ledger, rules, store
from billing_svc.platform import errors
from billing_svc.platform.accounts import rules as accounts_rules
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import direct


async def record(
    conn: AsyncConnection, catalogs: versions.CatalogCache, events: Sequence[rules.NewEvent], now: datetime
) -> list[batch_ledger.EventOutcome]:
    """Record events and return an outcome for each, in order; the error of one event does not affect the others.

    Raises RetryTransaction when another transaction stored any of the ids meanwhile; the repeat finds a duplicate.
    """
    keys = [event.key for event in events]
    names = [
        lookup.MeterQuery(event.account_id, event.sent.meter or "", event.sent.operation or "") for event in events
    ]
    # Events of the same account and meter share one look-up.
    asked = list(dict.fromkeys(names))
    named = {event.reservation_key for event in events if event.reservation_id}
    # The accounts in which events with REJECT admit units are locked; `hold_units.reserve` says why.
    admitting = {event.account_id for event in events if event.reject}
    turns = (accounts_store.locking(admitting),) if admitting else ()

    def beside(pairs: Collection[tuple[str, str]]) -> Iterable[direct.Call]:
        # All periods in which an event can count, or that can contain a live hold, end within the horizon.
        since = dict.fromkeys(pairs, now - quota_store.HORIZON)
        # Read after the locks: what another call recorded or closed while this one waited is found, so a repeat is not
        # denied the units that its own first sending took.
        holding = (reservations_store.finding(named),) if named else ()
        return *turns, counters_store.locking(since), store.finding(set(keys)), *holding

    read, rows = await lookup.read_account_states(conn, catalogs, asked, now, beside)
    counters, found, *held = rows[len(turns) :]
    reservations = reservations_store.by_id(held[0]) if held else {}
    known = dict(zip(asked, read, strict=True))
    stored = store.to_events(found)
    outcomes: dict[int, batch_ledger.EventOutcome] = {}
    first: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        if key in stored:
            outcomes[n] = _repeated(events[n], *stored[key])
        else:
            first.setdefault(key, n)
    if first:
        placed = _place([(n, events[n], known[names[n]]) for n in first.values()], outcomes, now)
        if placed:
            await _count(conn, catalogs, placed, counters_store.to_counters(counters), reservations, outcomes, now)
    if len(outcomes) < len(events):  # within a batch the first event of an id is recorded
        for n, key in enumerate(keys):
            if n not in outcomes:
                outcomes[n] = _repeated_in_batch(events[n], events[first[key]], outcomes[first[key]])
    return [outcomes[n] for n in range(len(events))]


def _place(
    events: Sequence[tuple[int, rules.NewEvent, lookup.MeterState | errors.BillingError]],
    outcomes: dict[int, batch_ledger.EventOutcome],
    now: datetime,
) -> list[batch_ledger.PlacedEvent]:
    """Find the period of each event; an invalid event gets its error as its outcome."""
    placed: list[batch_ledger.PlacedEvent] = []
    targets: dict[tuple[int, datetime], batch_ledger.TargetPeriod] = {}
    begun: set[gauges_store.GaugeKey] = set()
    for n, event, found in events:
        if isinstance(found, errors.BillingError):
            outcomes[n] = found
            continue
        meter = found.newest.meters[found.meter]
        is_gauge = meter.kind == "gauge"
        try:
            rules.check_kind(event.sent, meter)
            occurred_at = rules.check_occurred_at(event.sent.occurred_at, now)
        except errors.BillingError as error:
            outcomes[n] = error
            continue
        # A level counts in the present period, whenever it was measured.
        counts_at = now if is_gauge else occurred_at
        target = targets.get((id(found), counts_at))
        if target is None:
            account_state = found.facts.account_state
            if account_state.created_at is None:
                account_state = replace(account_state, created_at=accounts_rules.signup(now))
            under = rules.terms_of_event(account_state, found.catalogs, counts_at, now)
            target = batch_ledger.TargetPeriod.at(found, under, now, counts_at, is_gauge=is_gauge)
            targets[id(found), counts_at] = target
        one = batch_ledger.PlacedEvent(n, event, occurred_at, target)
        # Rows of gauges are created before their events are decided. The first event of an unknown account must create
        # none if it is refused, so it is decided here first.
        if is_gauge and target.is_of_unknown and target.gauge_key not in begun:
            refused = _refused_at_once(one, now)
            if refused is not None:
                outcomes[n] = refused
                continue
            begun.add(target.gauge_key)
        placed.append(one)
    return placed


def _refused_at_once(one: batch_ledger.PlacedEvent, now: datetime) -> batch_ledger.EventOutcome | None:
    """Return the refusal of an event by a gauge at zero, which creates neither gauge nor account; else None."""
    batch = batch_ledger.BatchLedger({}, {one.target.gauge_key: gauges_rules.Level(0, None)}, {}, {}, now)
    try:
        outcome = batch.decide_and_count(one)
    except errors.BillingError as error:
        return error
    return None if isinstance(outcome, batch_ledger.EventAnswer) else outcome


async def _count(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    placed: Sequence[batch_ledger.PlacedEvent],
    locked: Mapping[counters_store.CounterKey, counters_store.LockedCounter],
    reservations: Mapping[tuple[str, str], holds.Reservation],
    outcomes: dict[int, batch_ledger.EventOutcome],
    now: datetime,
) -> None:
    """Count the events one after the other, and write them with their counters, which are locked if they exist.

    Missing counters and accounts are inserted. If another transaction inserts any of them first, this transaction is
    repeated.
    """
    targets = list({id(one.target): one.target for one in placed}.values())
    for target in targets:
        if target.under.period.end <= now and target.key in locked:
            await _keep_terms(conn, catalogs, target, locked[target.key], now)
    gauges = {one.gauge_key: one.under.period.end for one in targets if one.is_gauge}
    levels = await gauges_store.lock(conn, gauges, now) if gauges else {}
    terms_of_holds = await _terms_of_holds(conn, catalogs, reservations)
    batch = batch_ledger.BatchLedger(locked, levels, reservations, terms_of_holds, now)
    rejecting = [one.target for one in placed if one.event.reject]
    if rejecting:
        await batch.expire(conn)
        limited = {one.key[0] for one in rejecting if one.rate_limit(now) is not None} if catalogs.limit_rates else ()
        if limited:
            await batch.read_windows(conn, limited)
    for one in placed:
        try:
            outcomes[one.n] = batch.decide_and_count(one)
        except errors.BillingError as error:
            outcomes[one.n] = error
    if not batch.events:
        return
    if gauges:
        await gauges_store.update(conn, batch.levels, gauges)
    await batch.close_reservations(conn)
    await alerts_store.insert_alerts(conn, batch.alerts, now)
    known = {key: one for key, one in batch.counters.items() if key in locked}
    opened = {key: one for key, one in batch.counters.items() if key not in locked}
    unknown = {one.key[0] for one in targets if one.is_of_unknown and one.key in opened}
    store.write(conn, batch.events, known, opened, unknown, now)


async def _terms_of_holds(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    reservations: Mapping[tuple[str, str], holds.Reservation],
) -> dict[tuple[str, str], rules.HoldTerms]:
    """Return the stored terms of reservations; a hold without stored terms is left out."""
    found = {}
    for key, one in reservations.items():
        first = one.first
        if first is None:
            continue
        plan = (await catalogs.get(conn, first.catalog_version)).plan(first.plan)
        limit = plan.limit(one.meter, pay_as_you_go=first.pay_as_you_go)
        allowance = terms.kept_allowance(limit, first.included, overridden=first.overridden)
        found[key] = rules.HoldTerms(
            plan=first.plan,
            catalog_version=first.catalog_version,
            reason=first.reason,
            allowance=allowance,
            period_start=one.period_start,
            units_within=one.units - first.units_beyond,
        )
    return found


async def _keep_terms(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    target: batch_ledger.TargetPeriod,
    row: counters_store.LockedCounter,
    now: datetime,
) -> None:
    """Use the terms stored with the counter of a past period."""
    catalog = await catalogs.get(conn, row.catalog_version)
    target.under = replace(
        target.under,
        catalog_version=row.catalog_version,
        catalog=catalog,
        plan=catalog.plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
    )
    override = (
        terms.Override(included=row.included, expires_at=None, note="", set_by="", set_at=now)
        if row.overridden
        else None
    )
    target.allowance = target.under.allowance(target.known.meter, override, now, target.used_at)


def _repeated(event: rules.NewEvent, sent: rules.SentEvent, recorded: rules.RecordedEvent) -> batch_ledger.EventOutcome:
    if event.sent != sent:
        return _reused(event)
    return batch_ledger.EventAnswer(recorded, duplicate=True)


def _repeated_in_batch(
    event: rules.NewEvent, first: rules.NewEvent, outcome: batch_ledger.EventOutcome
) -> batch_ledger.EventOutcome:
    if event.sent != first.sent:
        return _reused(event)
    return replace(outcome, duplicate=True) if isinstance(outcome, batch_ledger.EventAnswer) else outcome


def _reused(event: rules.NewEvent) -> errors.EventIdReused:
    message = f"event_id: {event.event_id!r} was recorded with other content"
    return errors.EventIdReused(message, {"event_id": event.event_id})
