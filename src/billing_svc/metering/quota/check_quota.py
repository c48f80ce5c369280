"""Decides a batch of checks from one snapshot; only a rate limit causes a write."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, parts, versions
from billing_svc.metering.quota import holds, lookup, rules, store, terms
from billing_svc.platform import clock, errors, values
from billing_svc.platform.database import transactions


@values.value
class QuotaQuestion:
    """A check: may the account take `quantity` now? With `hold`, the units are reserved if it may."""

    asked: lookup.MeterQuery
    quantity: int
    hold: holds.Hold | None = None


@values.value
class QuotaAnswer:
    """A decision with the facts and terms that it is based on."""

    decided_at: datetime
    known: lookup.MeterState
    under: terms.EffectiveTerms
    allowance: terms.Allowance
    counter: rules.Counter
    units: int
    decision: rules.Decision
    reservation: holds.Reservation | None = None

    def kept(self, counter: rules.Counter) -> holds.FirstAnswer:
        """Return the first answer as it is stored with the hold; `counter` includes the hold's units."""
        under, allowance, decision = self.under, self.allowance, self.decision
        return holds.FirstAnswer(
            period_end=under.period.end,
            plan=under.plan.key,
            catalog_version=under.catalog_version,
            quantity=under.quantity,
            pay_as_you_go=under.pay_as_you_go,
            past_due=under.past_due,
            included=allowance.included,
            overridden=allowance.overridden,
            used=counter.shown_used,
            reserved=counter.reserved,
            billable=counter.billable,
            remaining=counter.remaining(allowance.included),
            reason=decision.reason,
            units_beyond=decision.units_beyond,
            projected_cost=decision.projected_cost,
            grace_ends_at=decision.grace_ends_at,
        )

    @property
    def rate_limit(self) -> parts.RateLimit | None:
        """Return the rate limit that an allowed check counts against."""
        return self.under.plan.rate_limit_for(pay_as_you_go=self.under.pay_as_you_go)

    @property
    def rate_limit_used(self) -> int:
        """Return how many checks the rate window has admitted, this check included if it was admitted."""
        window, limit = self.known.facts.window, self.rate_limit
        if limit is None:
            return 0
        if self.decision.reason is rules.Reason.RATE_LIMITED:
            return limit.requests
        before = 0 if window is None or window.is_over(limit, self.decided_at) else window.admitted
        return min(before + self.decision.allowed, limit.requests)


@values.value
class RepeatedAnswer:
    """The answer to a repeated reserving check: the stored first answer, with the reservation as it is now."""

    catalog: model.Catalog
    reservation: holds.Reservation
    first: holds.FirstAnswer

    @property
    def decision(self) -> rules.Decision:
        """Return the first decision; the denial of a reservation that is no longer held."""
        if self.reservation.state is not holds.HoldState.HELD:
            return rules.Decision(allowed=False, reason=rules.Reason.RESERVATION_CLOSED)
        first = self.first
        return rules.Decision(
            allowed=True,
            reason=first.reason,
            units_beyond=first.units_beyond,
            projected_cost=first.projected_cost,
            grace_ends_at=first.grace_ends_at,
        )


class QuotaChecks:
    """Decides checks that reserve nothing."""

    def __init__(self, database: transactions.Transactions, catalogs: versions.CatalogCache, now: clock.Clock) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now

    async def decide(self, questions: Sequence[QuotaQuestion]) -> list[QuotaAnswer | errors.BillingError]:
        """Return a decision or an error for each question, in order."""
        now = self._clock.now()
        # Checks of the same account and meter share what is read.
        asked = list(dict.fromkeys(question.asked for question in questions))

        async def decide(conn: AsyncConnection) -> list[QuotaAnswer | errors.BillingError]:
            known = await lookup.read(conn, self._catalogs, asked, now)
            by_asked = dict(zip(asked, known, strict=True))
            outcomes = [decide_question(by_asked[question.asked], question, now) for question in questions]
            wanted = _wanted(outcomes)
            admitted = await store.admit_at_once(conn, wanted, now) if wanted else {}
            return [
                one if isinstance(one, errors.BillingError) else _within_rate(one, wanted, admitted) for one in outcomes
            ]

        return await self._database.look(decide)


def decide_question(
    known: lookup.MeterState | errors.BillingError, question: QuotaQuestion, now: datetime
) -> QuotaAnswer | errors.BillingError:
    """Decide a check on the facts read, without the rate limit."""
    if isinstance(known, errors.BillingError):
        return known
    under = known.terms_at(now)
    units = known.units(under, question.quantity)
    if units > rules.UNITS_MAX:
        problem = f"comes to {units} units; at most {rules.UNITS_MAX} are allowed"
        return errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    allowance = known.allowance(under, now)
    counter = known.counter_of(under)
    decision = rules.decide(allowance, counter, units, under.catalog.grace_period, now)
    return QuotaAnswer(now, known, under, allowance, counter, units, decision)


def _wanted(outcomes: Sequence[QuotaAnswer | errors.BillingError]) -> dict[str, rules.RateRequests]:
    """Return how many allowed checks of each account a rate limit has to admit.

    A denied check does not count, and a window that is known to be full admits none.
    """
    wanted: dict[str, rules.RateRequests] = {}
    for one in outcomes:
        if isinstance(one, errors.BillingError) or not one.decision.allowed or one.rate_limit is None:
            continue
        window = one.known.facts.window
        if window is None or window.room(one.rate_limit, one.decided_at):
            account_id = one.known.asked.account_id
            wanted.setdefault(account_id, rules.RateRequests(one.rate_limit, is_first=window is None)).number += 1
    return wanted


def _within_rate(
    one: QuotaAnswer, wanted: Mapping[str, rules.RateRequests], admitted: Mapping[str, tuple[int, datetime]]
) -> QuotaAnswer:
    """Return an allowed check, or its denial by the rate limit; an account's checks are admitted in their order."""
    if one.rate_limit is None or not one.decision.allowed:
        return one
    account_id, window = one.known.asked.account_id, one.known.facts.window
    if account_id in wanted:
        number, opened_at = admitted[account_id]
        wanted[account_id].given += 1
        if wanted[account_id].given <= number:
            return one
    else:
        opened_at = window.start if window is not None else one.decided_at
    return replace(one, decision=rules.rate_limited(one.rate_limit, opened_at, one.decided_at))
