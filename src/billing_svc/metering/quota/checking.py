"""Deciding a batch of checks: from one snapshot, and with a write only where a rate limit counts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.api import fields
from billing_svc.catalog import model, versions
from billing_svc.metering.quota import holds as reservations_rules
from billing_svc.metering.quota import reading, rules, store, terms
from billing_svc.platform import clock, errors, values
from billing_svc.platform.database import transactions


@values.value
class Question:
    """What a check asks: may it take `quantity` now? With `hold`, it takes them at once."""

    asked: reading.Asked
    quantity: int
    hold: reservations_rules.Hold | None = None


@values.value
class Checked:
    """A decision with all that it was made of."""

    decided_at: datetime
    known: reading.Known
    under: terms.Terms
    allowance: terms.Allowance
    counter: rules.Counter
    units: int
    decision: rules.Decision
    reservation: reservations_rules.Reservation | None = None

    @property
    def rate_limit(self) -> model.RateLimit | None:
        """Return the rate limit that an allowed check counts against."""
        return self.under.plan.rate_limit_for(pay_as_you_go=self.under.pay_as_you_go)

    @property
    def rate_limit_used(self) -> int:
        """Return how many checks the rate window had admitted by then, with this one if it was."""
        window, limit = self.known.facts.window, self.rate_limit
        if limit is None:
            return 0
        if self.decision.reason is rules.Reason.RATE_LIMITED:
            return limit.requests
        before = 0 if window is None or window.is_over(limit, self.decided_at) else window.admitted
        return min(before + self.decision.allowed, limit.requests)


class Checks:
    """Decides checks that hold nothing."""

    def __init__(self, database: transactions.Transactions, catalogs: versions.CatalogCache, now: clock.Clock) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now

    async def decide(self, questions: Sequence[Question]) -> list[Checked | errors.BillingError]:
        """Return a decision or an error for each question, in order."""
        now = self._clock.now()
        # Calls about the same meter of an account share what is read.
        asked = list(dict.fromkeys(question.asked for question in questions))

        async def decide(conn: AsyncConnection) -> list[Checked | errors.BillingError]:
            known = await reading.read(conn, self._catalogs, asked, now)
            by_asked = dict(zip(asked, known, strict=True))
            outcomes = [answer(by_asked[question.asked], question, now) for question in questions]
            wanted = _wanted(outcomes)
            admitted = await store.admit_at_once(conn, wanted, now) if wanted else {}
            return [
                one if isinstance(one, errors.BillingError) else _within_rate(one, wanted, admitted) for one in outcomes
            ]

        return await self._database.look(decide)


def answer(
    known: reading.Known | errors.BillingError, question: Question, now: datetime
) -> Checked | errors.BillingError:
    """Decide one question on what is known, rate limit aside."""
    if isinstance(known, errors.BillingError):
        return known
    under = known.terms_at(now)
    units = known.units(under, question.quantity)
    if units > fields.QUANTITY_MAX:
        problem = f"comes to {units} units; at most {fields.QUANTITY_MAX} are allowed"
        return errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    allowance = known.allowance(under, now)
    counter = known.counter_of(under)
    decision = rules.decide(allowance, counter, units, under.catalog.grace_period, now)
    return Checked(now, known, under, allowance, counter, units, decision)


def _wanted(outcomes: Sequence[Checked | errors.BillingError]) -> dict[str, rules.Requests]:
    """Return how many allowed checks of each account a rate limit has to admit.

    A denied one consumes nothing, and a window that is full needs no asking.
    """
    wanted: dict[str, rules.Requests] = {}
    for one in outcomes:
        if isinstance(one, errors.BillingError) or not one.decision.allowed or one.rate_limit is None:
            continue
        window = one.known.facts.window
        if window is None or window.room(one.rate_limit, one.decided_at):
            account_id = one.known.asked.account_id
            wanted.setdefault(account_id, rules.Requests(one.rate_limit, is_first=window is None)).number += 1
    return wanted


def _within_rate(
    one: Checked, wanted: Mapping[str, rules.Requests], admitted: Mapping[str, tuple[int, datetime]]
) -> Checked:
    """Return an allowed check as it is while the rate limit admits it; the first ones of an account go first."""
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
