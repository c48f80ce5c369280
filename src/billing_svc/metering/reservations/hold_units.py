"""Reserving, releasing and expiring units, each for a batch in the caller's transaction.

Locks are taken in the order that `metering` gives.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import check_quota, holds, lookup, rate_admissions
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import store as quota_store
from billing_svc.metering.reservations import store
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import direct, transactions

ReserveOutcome: TypeAlias = check_quota.QuotaAnswer | check_quota.RepeatedAnswer | errors.BillingError

# How many counters a sweep handles in one transaction.
SWEEP_MAX = 100


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """The outcome of a release; `released`: this call closed it; `reserved`: the units still held on the meter."""

    reservation: holds.Reservation
    released: bool
    reserved: int


async def reserve(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    questions: Sequence[check_quota.QuotaQuestion],
    now: datetime,
) -> list[ReserveOutcome]:
    """Decide questions and hold the units that are allowed; a repeated request id gets its first reservation.

    Around the end of a period an account and meter have several counters, and the lock of one counter does not protect
    the others. So each transaction that admits units locks the account. Costs two round trips.
    """
    keys = [_request_key(question) for question in questions]

    def before(pairs: Collection[tuple[str, str]]) -> Iterable[direct.Call]:
        since = {pair: now - quota_store.HORIZON for pair in pairs if pair[1]}
        return (
            accounts_store.locking({account_id for account_id, _ in since}),
            counters_store.locking(since),
            store.finding_by_request(set(keys)),
        )

    asked = list(dict.fromkeys(question.asked for question in questions))
    read, (_, locked, found) = await lookup.read_after(conn, catalogs, asked, now, before)
    known = dict(zip(asked, read, strict=True))
    earlier = store.by_request(found)
    first: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        if key not in earlier:
            first.setdefault(key, n)
    levels = await _lock_levels(conn, [(known[questions[n].asked], questions[n]) for n in first.values()], now)
    await _expire_overdue(conn, known.values(), counters_store.to_counters(locked), now)
    holds_made = _NewHolds(now, levels)
    outcomes: dict[int, ReserveOutcome] = {
        n: holds_made.answer(known[questions[n].asked], questions[n]) for n in first.values()
    }
    await holds_made.write(conn)
    for n, question in enumerate(questions):
        if keys[n] in earlier:
            outcomes[n] = await _repeated(conn, catalogs, known[question.asked], question, earlier[keys[n]], now)
        elif n not in outcomes:
            outcomes[n] = _repeated_in_batch(question, questions[first[keys[n]]], outcomes[first[keys[n]]])
    return [outcomes[n] for n in range(len(questions))]


async def release(
    conn: AsyncConnection, keys: Sequence[tuple[str, str]], now: datetime
) -> list[ReleaseOutcome | errors.BillingError]:
    """Give back the units of each (account, reservation id); a closed reservation is returned unchanged."""
    found, held = await _find_and_lock(conn, set(keys), now)
    closing = {key: one for key, one in found.items() if one.state is holds.HoldState.HELD}
    if closing:
        changes = [(one, _closed_state(one, now), None) for one in closing.values()]
        if await store.close(conn, changes, now) < len(closing):
            raise transactions.RetryTransaction
        for one in closing.values():
            held[one.account_id, one.meter] -= one.units
    outcomes: list[ReleaseOutcome | errors.BillingError] = []
    done: set[tuple[str, str]] = set()
    for key in keys:
        if key not in found:
            message = f"reservation_id: the account has no reservation {key[1]!r}"
            outcomes.append(errors.ReservationNotFound(message, {"reservation_id": key[1]}))
            continue
        one = found[key]
        state = _closed_state(one, now) if key in closing else one.state
        is_own = key in closing and key not in done and state is holds.HoldState.RELEASED
        outcomes.append(ReleaseOutcome(replace(one, state=state), is_own, held[one.account_id, one.meter]))
        done.add(key)
    return outcomes


async def sweep(conn: AsyncConnection, now: datetime) -> int:
    """Close expired reservations, which decisions already ignore, and return the number of their counters."""
    keys = await store.overdue_counters(conn, SWEEP_MAX, now)
    if keys:
        await counters_store.lock_counters(conn, keys)
        await expire(conn, keys, now)
    return len(keys)


async def expire(
    conn: AsyncConnection, keys: Sequence[counters_store.CounterKey], now: datetime
) -> dict[counters_store.CounterKey, int]:
    """Close the reservations of locked counters whose time is over; returns the units that each counter got back."""
    back = await store.expire(conn, keys, now)
    if back:
        changes = {key: -units for key, units in back.items()}
        await direct.fetch_each(conn, counters_store.adding_reserved(changes, now))
    return back


async def _find_and_lock(
    conn: AsyncConnection, keys: Collection[tuple[str, str]], now: datetime
) -> tuple[dict[tuple[str, str], holds.Reservation], dict[tuple[str, str], int]]:
    """Lock counters, and return the reservations and the units that each account and meter holds.

    Locks all counters that may hold units of the reservations' accounts and meters.
    """
    finding = store.finding(keys)
    (rows,) = await direct.fetch_each(conn, finding)
    since: dict[tuple[str, str], datetime] = {}
    for one in store.by_id(rows).values():
        pair = (one.account_id, one.meter)
        since[pair] = min(one.period_start, since.get(pair, now - quota_store.HORIZON))
    if not since:
        return {}, {}
    # Read again under the locks: while this transaction waited, another may have closed a reservation.
    locked, rows = await direct.fetch_each(conn, counters_store.locking(since), finding)
    held = dict.fromkeys(since, 0)
    for key, row in counters_store.to_counters(locked).items():
        held[key[:2]] += row.counter.reserved
    return store.by_id(rows), held


async def _expire_overdue(
    conn: AsyncConnection,
    known: Iterable[lookup.MeterState | errors.BillingError],
    locked: Mapping[counters_store.CounterKey, counters_store.LockedCounter],
    now: datetime,
) -> None:
    """Close expired reservations. The facts leave their units out, so such a counter differs from its locked row."""
    overdue = []
    for one in known:
        if isinstance(one, errors.BillingError):
            continue
        for start, counter in one.facts.counters.items():
            key = (one.asked.account_id, one.meter, start)
            if key in locked and locked[key].counter.reserved != counter.reserved:
                overdue.append(key)
    if overdue:
        await expire(conn, overdue, now)


async def _lock_levels(
    conn: AsyncConnection,
    asked: Iterable[tuple[lookup.MeterState | errors.BillingError, check_quota.QuotaQuestion]],
    now: datetime,
) -> dict[tuple[str, str], int]:
    """Lock the levels of gauges and return them; a denied question creates no level of a gauge without any usage."""
    gauges: set[tuple[str, str]] = set()
    for known, question in asked:
        if isinstance(known, errors.BillingError) or not known.is_gauge:
            continue
        checked = check_quota.decide_question(known, question, now)
        if isinstance(checked, check_quota.QuotaAnswer) and (known.facts.counters or checked.decision.allowed):
            gauges.add((question.asked.account_id, known.meter))
    if not gauges:
        return {}
    return {key: one.level for key, one in (await gauges_store.lock(conn, gauges, now)).items()}


class _NewHolds:
    """The units held and the checks admitted so far, while the questions of a batch are answered in their order."""

    def __init__(self, now: datetime, levels: Mapping[tuple[str, str], int]) -> None:
        self._now = now
        # The locked levels of gauges, by account and meter.
        self._levels = levels
        # The units held by this batch, by account and meter.
        self._units: dict[tuple[str, str], int] = {}
        self._rates = rate_admissions.RateAdmissions(now)
        self._reserved: dict[counters_store.CounterKey, int] = {}
        self._opened: dict[counters_store.CounterKey, counters_store.CounterUpdate] = {}
        self._unknown: set[str] = set()
        self._made: list[tuple[holds.Reservation, str]] = []

    def answer(
        self, known: lookup.MeterState | errors.BillingError, question: check_quota.QuotaQuestion
    ) -> check_quota.QuotaAnswer | errors.BillingError:
        """Decide a question, with the batch's earlier holds counted, and hold its units if it is allowed."""
        if isinstance(known, errors.BillingError) or question.hold is None:
            return check_quota.decide_question(known, question, self._now)
        account_id = question.asked.account_id
        pair = (account_id, known.meter)
        facts = known.facts
        if pair in self._units or pair in self._levels:
            level = self._levels.get(pair, facts.level)
            facts = replace(facts, held=facts.held + self._units.get(pair, 0), level=level)
            known = replace(known, facts=facts)
        checked = check_quota.decide_question(known, question, self._now)
        if isinstance(checked, errors.BillingError) or not checked.decision.allowed:
            return checked
        if checked.rate_limit is not None:
            denial = self._rates.admit(account_id, checked.rate_limit, facts.window)
            if denial is not None:
                return replace(checked, decision=denial)
        counter = checked.counter.holding(checked.counter.reserved + checked.units)
        reservation = holds.Reservation(
            account_id=account_id,
            reservation_id=uuid.uuid4().hex,
            request_id=question.hold.request_id,
            meter=known.meter,
            period_start=checked.under.period.start,
            units=checked.units,
            sent=_sent(question),
            state=holds.HoldState.HELD,
            created_at=self._now,
            expires_at=self._now + question.hold.ttl,
            first=checked.kept(counter),
        )
        self._hold(checked, reservation, question.hold.caller)
        return replace(checked, counter=counter, reservation=reservation)

    def _hold(self, checked: check_quota.QuotaAnswer, reservation: holds.Reservation, caller: str) -> None:
        key = reservation.counter_key
        self._units[key[:2]] = self._units.get(key[:2], 0) + reservation.units
        self._reserved[key] = self._reserved.get(key, 0) + reservation.units
        self._made.append((reservation, caller))
        if reservation.period_start not in checked.known.facts.counters:
            zero = quota_rules.Counter()
            self._opened[key] = counters_store.CounterUpdate(zero, checked.under, checked.allowance)
            if checked.known.facts.account_state.created_at is None:
                self._unknown.add(reservation.account_id)

    async def write(self, conn: AsyncConnection) -> None:
        """Write the holds, and their new counters and accounts, in the round trip of COMMIT.

        Raises RetryTransaction if another transaction has filled a rate window meanwhile. The COMMIT raises it if
        another transaction has taken a request id, or created an account or a counter, meanwhile.
        """
        if not self._made:
            return
        await self._rates.write(conn)
        calls = counters_store.insertions(self._opened, self._unknown, self._now)
        reserving = counters_store.adding_reserved(self._reserved, self._now)
        direct.defer(conn, *calls, store.insertion(self._made), reserving)


async def _repeated(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    known: lookup.MeterState | errors.BillingError,
    question: check_quota.QuotaQuestion,
    reservation: holds.Reservation,
    now: datetime,
) -> ReserveOutcome:
    """Answer a repeated request with its first answer and the present state of its reservation."""
    if reservation.sent != _sent(question):
        return _reused(question)
    state = reservation.state_at(now)
    if reservation.first is not None:
        catalog = await catalogs.get(conn, reservation.first.catalog_version)
        return check_quota.RepeatedAnswer(catalog, replace(reservation, state=state), reservation.first)
    # The hold was made before first answers were stored, so only the present facts are known.
    checked = check_quota.decide_question(known, question, now)
    if isinstance(checked, errors.BillingError):
        return checked
    decision = quota_rules.Decision(allowed=True, reason=quota_rules.Reason.NONE)
    if state is not holds.HoldState.HELD:
        decision = quota_rules.Decision(allowed=False, reason=quota_rules.Reason.RESERVATION_CLOSED)
    return replace(checked, decision=decision, reservation=replace(reservation, state=state))


def _repeated_in_batch(
    question: check_quota.QuotaQuestion,
    first: check_quota.QuotaQuestion,
    outcome: ReserveOutcome,
) -> ReserveOutcome:
    return outcome if _sent(question) == _sent(first) else _reused(question)


def _reused(question: check_quota.QuotaQuestion) -> errors.RequestIdReused:
    request_id = _request_key(question)[1]
    message = f"request_id: {request_id!r} was used with other content"
    return errors.RequestIdReused(message, {"request_id": request_id})


def _request_key(question: check_quota.QuotaQuestion) -> tuple[str, str]:
    if question.hold is None:
        raise ValueError("only a question with a hold is reserved")
    return (question.asked.account_id, question.hold.request_id)


def _sent(question: check_quota.QuotaQuestion) -> holds.SentHold:
    return holds.SentHold(question.asked.meter, question.asked.operation, question.quantity)


def _closed_state(reservation: holds.Reservation, now: datetime) -> holds.HoldState:
    """Return the state that a release gives to a held reservation: EXPIRED if its time is over."""
    return holds.HoldState.EXPIRED if reservation.state_at(now) is holds.HoldState.EXPIRED else holds.HoldState.RELEASED
