"""Reserving, releasing and expiring units, each for a batch in the caller's transaction.

Locks are taken in the order that `metering` gives.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import check_quota, holds, lookup, rate_admissions
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.reservations import store
from billing_svc.platform import errors
from billing_svc.platform.database import transactions

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
) -> list[check_quota.QuotaAnswer | errors.BillingError]:
    """Decide questions and hold the units that are allowed; a repeated request id gets its first reservation.

    Raises RetryTransaction when another transaction took one of the request ids meanwhile.
    """
    keys = [_request_key(question) for question in questions]
    earlier = await store.find_by_request(conn, set(keys))
    first: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        if key not in earlier:
            first.setdefault(key, n)
    asked = [question.asked for question in questions]
    known = await lookup.read(conn, catalogs, asked, now)
    # A question that even a counter at zero denies creates neither the counter nor the account.
    outcomes = {n: refused for n in first.values() if (refused := _refused_at_once(known[n], questions[n], now))}
    going = [n for n in first.values() if n not in outcomes]
    new = await _locked(conn, {n: one for n in going if isinstance(one := known[n], lookup.MeterState)}, now)
    holds_made = _NewHolds(now)
    for n, one in new.items():
        outcomes[n] = holds_made.answer(one, questions[n])
    denied = {keys[n] for n in new if not _is_held(outcomes[n])}
    # While this call waited for the counter, an earlier sending of the same request may have taken the units.
    if denied and await store.find_by_request(conn, denied):
        raise transactions.RetryTransaction
    await _write(conn, holds_made, now)
    for n, question in enumerate(questions):
        if keys[n] in earlier:
            outcomes[n] = _repeated(known[n], question, earlier[keys[n]], now)
        elif n not in outcomes:
            outcomes[n] = _repeated_in_batch(question, questions[first[keys[n]]], outcomes[first[keys[n]]])
    return [outcomes[n] for n in range(len(questions))]


async def release(
    conn: AsyncConnection, keys: Sequence[tuple[str, str]], now: datetime
) -> list[ReleaseOutcome | errors.BillingError]:
    """Give back the units of each (account, reservation id); a closed reservation is returned in its state."""
    found = await store.find(conn, set(keys))
    locked = await counters_store.lock_counters(conn, {one.counter_key for one in found.values()}) if found else {}
    closing = {key: one for key, one in found.items() if one.state is holds.HoldState.HELD}
    if closing:
        changes = [(one, _closed_state(one, now), None) for one in closing.values()]
        if await store.close(conn, changes, now) < len(closing):
            raise transactions.RetryTransaction
        await counters_store.add_reserved(conn, _given_back(closing.values()), now)
    outcomes: list[ReleaseOutcome | errors.BillingError] = []
    done: set[tuple[str, str]] = set()
    for key in keys:
        if key not in found:
            message = f"reservation_id: the account has no reservation {key[1]!r}"
            outcomes.append(errors.ReservationNotFound(message, {"reservation_id": key[1]}))
            continue
        one = found[key]
        state = _closed_state(one, now) if key in closing else one.state
        back = sum(other.units for other in closing.values() if other.counter_key == one.counter_key)
        reserved = locked[one.counter_key].counter.reserved - back
        is_own = key in closing and key not in done and state is holds.HoldState.RELEASED
        outcomes.append(ReleaseOutcome(replace(one, state=state), is_own, reserved))
        done.add(key)
    return outcomes


async def sweep(conn: AsyncConnection, now: datetime) -> int:
    """Close reservations whose time is over, and return on how many counters. Decisions ignore them already."""
    keys = await store.overdue_counters(conn, SWEEP_MAX, now)
    if keys:
        await counters_store.lock_counters(conn, keys)
        await expire(conn, keys, now)
    return len(keys)


async def expire(
    conn: AsyncConnection, keys: Sequence[counters_store.CounterKey], now: datetime
) -> dict[counters_store.CounterKey, int]:
    """Close the reservations of locked counters whose time is over; returns the units that each counter got back."""
    back: dict[counters_store.CounterKey, int] = {}
    for key, _, units in await store.expire(conn, keys, now):
        back[key] = back.get(key, 0) + units
    if back:
        await counters_store.add_reserved(conn, {key: -units for key, units in back.items()}, now)
    return back


def _refused_at_once(
    known: lookup.MeterState | errors.BillingError, question: check_quota.QuotaQuestion, now: datetime
) -> check_quota.QuotaAnswer | errors.BillingError | None:
    """Return the answer that needs no lock: an error, or the denial of a counter that does not exist yet; else None."""
    checked = check_quota.answer(known, question, now)
    if isinstance(checked, errors.BillingError):
        return checked
    is_unused = checked.under.period.start not in checked.known.facts.counters
    return checked if is_unused and not checked.decision.allowed else None


def _is_held(outcome: check_quota.QuotaAnswer | errors.BillingError) -> bool:
    return isinstance(outcome, check_quota.QuotaAnswer) and outcome.reservation is not None


async def _locked(
    conn: AsyncConnection, known: Mapping[int, lookup.MeterState], now: datetime
) -> dict[int, lookup.MeterState]:
    """Lock the counters (and levels) of new holds, and return the meter states with what the locked rows say."""
    if not known:
        return {}
    under = {n: one.terms_at(now) for n, one in known.items()}
    keys = {n: (one.asked.account_id, one.meter, under[n].period.start) for n, one in known.items()}
    missing = {
        keys[n]: (under[n], one.allowance(under[n], now))
        for n, one in known.items()
        if under[n].period.start not in one.facts.counters
    }
    unknown = {one.asked.account_id for one in known.values() if one.facts.account_state.created_at is None}
    locked = await counters_store.lock_counters(conn, set(keys.values()) - missing.keys())
    gauges = {keys[n][:2] for n, one in known.items() if one.is_gauge}
    levels = await gauges_store.lock(conn, gauges, now) if gauges else {}
    holding = [key for key, row in locked.items() if row.counter.reserved]
    back = await expire(conn, holding, now) if holding else {}
    # After all locks, so that a transaction that waits for these new rows holds no lock that we wait for.
    if missing:
        locked |= await counters_store.open_counters(conn, missing, unknown, now)
    fresh = {}
    for n, one in known.items():
        key = keys[n]
        counter = locked[key].counter
        counter = replace(counter, reserved=counter.reserved - back.get(key, 0))
        level = levels[key[:2]].level if key[:2] in levels else 0
        facts = replace(one.facts, counters={key[2]: counter}, level=level)
        fresh[n] = replace(one, facts=facts)
    return fresh


class _NewHolds:
    """The units held and the checks admitted while the questions of a batch are answered one after the other."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self.rates = rate_admissions.RateAdmissions(now)
        self.held: dict[counters_store.CounterKey, int] = {}
        self.made: list[tuple[holds.Reservation, str]] = []

    def answer(
        self, known: lookup.MeterState, question: check_quota.QuotaQuestion
    ) -> check_quota.QuotaAnswer | errors.BillingError:
        """Decide a question, given the holds of those before it, and hold its units if it is allowed."""
        start = known.terms_at(self._now).period.start
        key = (question.asked.account_id, known.meter, start)
        counter = known.facts.counters[start]
        counter = replace(counter, reserved=counter.reserved + self.held.get(key, 0))
        facts = replace(known.facts, counters={start: counter})
        checked = check_quota.answer(replace(known, facts=facts), question, self._now)
        if isinstance(checked, errors.BillingError) or not checked.decision.allowed or question.hold is None:
            return checked
        if checked.rate_limit is not None:
            account_id, window = question.asked.account_id, known.facts.window
            denial = self.rates.admit(account_id, checked.rate_limit, window)
            if denial is not None:
                return replace(checked, decision=denial)
        self.held[key] = self.held.get(key, 0) + checked.units
        reservation = holds.Reservation(
            account_id=question.asked.account_id,
            reservation_id=uuid.uuid4().hex,
            request_id=question.hold.request_id,
            meter=known.meter,
            period_start=start,
            units=checked.units,
            sent=_sent(question),
            state=holds.HoldState.HELD,
            expires_at=self._now + question.hold.ttl,
        )
        self.made.append((reservation, question.hold.caller))
        counter = replace(checked.counter, reserved=checked.counter.reserved + checked.units)
        return replace(checked, counter=counter, reservation=reservation)


async def _write(conn: AsyncConnection, holds_made: _NewHolds, now: datetime) -> None:
    """Write the new holds. Raises RetryTransaction if another transaction filled a rate window or took a request id."""
    if not holds_made.made:
        return
    await holds_made.rates.write(conn)
    if await store.insert(conn, holds_made.made, now) < len(holds_made.made):
        raise transactions.RetryTransaction
    await counters_store.add_reserved(conn, holds_made.held, now)


def _repeated(
    known: lookup.MeterState | errors.BillingError,
    question: check_quota.QuotaQuestion,
    reservation: holds.Reservation,
    now: datetime,
) -> check_quota.QuotaAnswer | errors.BillingError:
    """Answer a repeated request with the present state of its reservation."""
    if reservation.sent != _sent(question):
        return _reused(question)
    checked = check_quota.answer(known, question, now)
    if isinstance(checked, errors.BillingError):
        return checked
    state = reservation.state_at(now)
    decision = quota_rules.Decision(allowed=True, reason=quota_rules.Reason.NONE)
    if state is not holds.HoldState.HELD:
        decision = quota_rules.Decision(allowed=False, reason=quota_rules.Reason.RESERVATION_CLOSED)
    return replace(checked, decision=decision, reservation=replace(reservation, state=state))


def _repeated_in_batch(
    question: check_quota.QuotaQuestion,
    first: check_quota.QuotaQuestion,
    outcome: check_quota.QuotaAnswer | errors.BillingError,
) -> check_quota.QuotaAnswer | errors.BillingError:
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


def _given_back(reservations: Iterable[holds.Reservation]) -> dict[counters_store.CounterKey, int]:
    changes: dict[counters_store.CounterKey, int] = {}
    for one in reservations:
        changes[one.counter_key] = changes.get(one.counter_key, 0) - one.units
    return changes
