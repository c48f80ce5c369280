"""Invariants of the pure decision and the pure count, for any numbers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import assume, given
from hypothesis import strategies as st

from billing_svc.catalog import parts
from billing_svc.metering.quota import rules, terms
from billing_svc.pricing import rules as pricing_rules

NOW = datetime(2026, 5, 11, 9, 30, tzinfo=UTC)
GRACE = timedelta(hours=24)
MICROSECOND = timedelta(microseconds=1)

UNITS = st.integers(1, 10**12)
# Small numbers reach limits; large numbers reach the ends of the range.
QUANTITIES = st.integers(0, 30) | st.integers(0, 10**12)
BEYONDS = st.sampled_from(["deny", "grace", "charge", "allow"])


@st.composite
def allowances(draw: st.DrawFn, beyond: st.SearchStrategy[str] = BEYONDS) -> terms.Allowance:
    included, chosen = draw(QUANTITIES), draw(beyond)
    price = {"unit_price": draw(st.decimals("0.001", "10", places=3))} if chosen == "charge" else {}
    return terms.Allowance(parts.Limit.model_validate({"included": included, "beyond": chosen, **price}), included)


@st.composite
def counters(
    draw: st.DrawFn, *, gauge: bool | None = False, reserved: st.SearchStrategy[int] = QUANTITIES
) -> rules.Counter:
    used = draw(QUANTITIES)
    is_gauge = draw(st.booleans()) if gauge is None else gauge
    return rules.Counter(
        used=used,
        reserved=draw(reserved),
        billable=draw(st.integers(0, used)),
        exceeded_at=draw(st.none() | st.timedeltas(-2 * GRACE, timedelta()).map(lambda ago: NOW + ago)),
        level=draw(st.integers(0, used)) if is_gauge else None,
    )


FREE = st.just(0)


def decide(allowance: terms.Allowance, counter: rules.Counter, units: int) -> rules.Decision:
    return rules.decide(allowance, counter, units, GRACE, NOW)


@given(allowances(), counters(gauge=None), UNITS)
def test_a_limit_is_met_exactly(allowance: terms.Allowance, counter: rules.Counter, units: int) -> None:
    """Remaining units are allowed without a reason, and a further unit is handled by `beyond`."""
    remaining = counter.remaining(allowance.included)
    if remaining:
        assert decide(allowance, counter, remaining) == rules.Decision(allowed=True, reason=rules.Reason.NONE)
    more = decide(allowance, counter, remaining + units)
    assert more.units_beyond == units
    assert more.reason is not rules.Reason.NONE
    assert allowance.limit is not None
    if allowance.limit.beyond == "deny":
        assert not more.allowed
    if allowance.limit.beyond in {"charge", "allow"}:
        assert more.allowed


@given(allowances(st.just("deny")), counters(gauge=None), UNITS)
def test_what_is_admitted_never_passes_a_hard_limit(
    allowance: terms.Allowance, counter: rules.Counter, units: int
) -> None:
    if decide(allowance, counter, units).allowed:
        after = rules.count(allowance, counter, units, NOW)
        assert allowance.included is not None
        assert after.consumed + after.reserved <= allowance.included


@given(allowances(), counters(gauge=None), UNITS, UNITS)
def test_a_smaller_quantity_is_allowed_where_a_larger_one_is(
    allowance: terms.Allowance, counter: rules.Counter, units: int, more: int
) -> None:
    if decide(allowance, counter, units + more).allowed:
        assert decide(allowance, counter, units).allowed


@given(allowances(), counters(gauge=None), UNITS, UNITS)
def test_a_raised_limit_denies_nothing_that_was_allowed(
    allowance: terms.Allowance, counter: rules.Counter, units: int, more: int
) -> None:
    assert allowance.included is not None
    raised = replace(allowance, included=allowance.included + more)
    if decide(allowance, counter, units).allowed:
        assert decide(raised, counter, units).allowed
        assert decide(replace(allowance, included=None), counter, units).allowed
    assert raised.included is not None
    assert decide(raised, counter, units).units_beyond <= decide(allowance, counter, units).units_beyond


@given(allowances(), counters(), UNITS)
def test_holds_only_ever_take_room_away(allowance: terms.Allowance, counter: rules.Counter, units: int) -> None:
    if decide(allowance, counter, units).allowed:
        assert decide(allowance, replace(counter, reserved=0), units).allowed


@given(allowances(), counters(gauge=None, reserved=FREE), UNITS)
def test_the_projected_cost_is_what_is_then_counted_as_billable(
    allowance: terms.Allowance, counter: rules.Counter, units: int
) -> None:
    assert allowance.limit is not None
    # The counter as it is in an open period: a gauge's peak is billed already.
    before = counter if counter.level is None else rules.raise_peak(allowance, counter)
    decision = decide(allowance, before, units)
    billed = rules.count(allowance, before, units, NOW).billable - before.billable
    assert decision.projected_cost == (pricing_rules.overage(allowance.limit, billed) if allowance.charges else 0)
    if counter.level is None and allowance.charges:
        assert decision.units_beyond == billed


@given(allowances(), counters(gauge=None), UNITS)
def test_counting_keeps_billable_within_used(allowance: terms.Allowance, counter: rules.Counter, units: int) -> None:
    after = rules.count(allowance, counter, units, NOW)
    assert 0 <= counter.billable <= after.billable <= after.used
    assert after.used >= counter.used
    assert after.reserved == counter.reserved
    if not allowance.charges:
        assert after.billable == counter.billable


@given(allowances(), counters(gauge=None), UNITS, UNITS)
def test_two_events_count_as_one_of_both(
    allowance: terms.Allowance, counter: rules.Counter, first: int, second: int
) -> None:
    apart = rules.count(allowance, rules.count(allowance, counter, first, NOW), second, NOW)
    assert apart == rules.count(allowance, counter, first + second, NOW)


@given(allowances(), counters(), UNITS, st.data())
def test_a_correction_takes_back_what_was_charged_first(
    allowance: terms.Allowance, counter: rules.Counter, units: int, data: st.DataObject
) -> None:
    before = rules.count(allowance, counter, units, NOW)
    taken = data.draw(st.integers(1, before.used))
    after = rules.correct(before, taken, allowance.included)
    assert after.used == before.used - taken
    assert before.billable - after.billable == min(taken, before.billable)
    assert 0 <= after.billable <= after.used
    assert after.consumed <= before.consumed
    if not after.is_exceeded(allowance.included):
        assert after.exceeded_at is None


@given(QUANTITIES, counters(reserved=FREE), UNITS)
def test_with_one_price_what_is_charged_is_what_is_beyond(included: int, counter: rules.Counter, units: int) -> None:
    """From a period's start on, under constant terms: after events and after corrections."""
    allowance = terms.Allowance(parts.Limit(included=included, beyond="charge", unit_price=Decimal(1)), included)
    opened = rules.count(allowance, rules.Counter(), counter.used, NOW)
    after = rules.count(allowance, opened, units, NOW)
    assert after.billable == max(0, after.used - included)
    for taken in {1, units, after.used}:
        corrected = rules.correct(after, taken, included)
        assert corrected.billable == max(0, corrected.used - included)


@given(allowances(st.just("grace")), counters(gauge=None), UNITS, st.timedeltas(timedelta(), 3 * GRACE))
def test_a_grace_lasts_its_time_and_not_a_microsecond_longer(
    allowance: terms.Allowance, counter: rules.Counter, units: int, later: timedelta
) -> None:
    assert allowance.included is not None
    counter = replace(counter, exceeded_at=None)
    assume(not counter.is_exceeded(allowance.included))
    crossed = rules.count(allowance, counter, counter.free(allowance.included) + units, NOW)
    assert crossed.exceeded_at == NOW
    # Whatever is counted afterwards, the grace begins when the limit was first exceeded.
    later_on = rules.count(allowance, crossed, units, NOW + later)
    end = NOW + GRACE
    for at, allowed in ((end - MICROSECOND, True), (end, False), (NOW + later, later < GRACE)):
        decision = rules.decide(allowance, later_on, 1, GRACE, at)
        assert (decision.allowed, decision.grace_ends_at) == (allowed, end)


@given(allowances(), st.lists(st.integers(0, 40), min_size=1))
def test_a_gauge_s_peak_is_its_highest_level_and_its_excess_is_billed_once(
    allowance: terms.Allowance, levels: list[int]
) -> None:
    assert allowance.included is not None
    counter = rules.Counter(level=0)
    for level in levels:
        counter = rules.count(allowance, counter, level - (counter.level or 0), NOW)
        assert counter.level == level <= counter.used
        assert rules.raise_peak(allowance, counter) == counter
    assert counter.used == max(levels)
    assert counter.billable == (max(0, max(levels) - allowance.included) if allowance.charges else 0)


@given(allowances(st.just("charge")), counters(reserved=FREE), QUANTITIES, UNITS)
def test_a_cap_on_the_overage_is_never_passed_by_what_is_admitted(
    allowance: terms.Allowance, counter: rules.Counter, cap: int, units: int
) -> None:
    capped = replace(allowance, charged_units_max=cap)
    assume(counter.billable <= cap)
    if decide(capped, counter, units).allowed:
        assert rules.count(capped, counter, units, NOW).billable <= cap


@given(counters(gauge=None), UNITS)
def test_a_meter_outside_the_plan_is_denied_and_never_charged(counter: rules.Counter, units: int) -> None:
    absent = terms.Allowance(None, 0)
    decision = decide(absent, counter, units)
    assert (decision.allowed, decision.reason) == (False, rules.Reason.NOT_IN_PLAN)
    assert rules.count(absent, counter, units, NOW).billable == counter.billable
