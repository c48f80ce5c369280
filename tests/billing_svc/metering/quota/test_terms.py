"""Which plan holds at an instant and in which period: from subscriptions and the clock alone."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_svc.catalog import loading, model
from billing_svc.metering.quota import periods, terms
from tests.billing_svc.service import CATALOGS

TICK = timedelta(microseconds=1)
NYQST = loading.load_file(CATALOGS / "nyqst.yaml")
ORGS = loading.load_file(CATALOGS / "orgs.yaml")
AUTOMATION = loading.load_file(CATALOGS / "automation.yaml")


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _subscription(
    since: datetime,
    until: datetime | None = None,
    *,
    name: str = "sub_1",
    plan: str = "pro",
    anchor: datetime | None = None,
) -> terms.PlanSubscription:
    return terms.PlanSubscription(name, "active", plan, 1, 1, anchor or since, since, since, until)


def _standing(*subscriptions: terms.PlanSubscription, created_at: datetime | None = None) -> terms.AccountState:
    return terms.AccountState(1, created_at, None, subscriptions)


def _period(
    account_state: terms.AccountState, at: datetime, catalog: model.Catalog = NYQST
) -> tuple[str, periods.Period]:
    found = terms.effective_terms(account_state, {1: catalog}, at)
    return found.plan.key, found.period


def test_months_of_a_subscription_follow_its_anchor_and_the_clock() -> None:
    account_state = _standing(_subscription(_at("2026-01-31")))
    for start, end in (("2026-01-31", "2026-02-28"), ("2026-02-28", "2026-03-31"), ("2026-03-31", "2026-04-30")):
        expected = ("pro", periods.Period(_at(start), _at(end)))
        assert _period(account_state, _at(start)) == expected
        assert _period(account_state, _at(end) - TICK) == expected


def test_buying_a_plan_ends_the_free_period_and_losing_it_begins_another() -> None:
    account_state = _standing(_subscription(_at("2026-03-10"), _at("2026-04-20")))
    assert _period(account_state, _at("2026-03-05")) == ("free", periods.Period(_at("2026-03-01"), _at("2026-03-10")))
    assert _period(account_state, _at("2026-03-10")) == ("pro", periods.Period(_at("2026-03-10"), _at("2026-04-10")))
    assert _period(account_state, _at("2026-04-15")) == ("pro", periods.Period(_at("2026-04-10"), _at("2026-04-20")))
    assert _period(account_state, _at("2026-04-20")) == ("free", periods.Period(_at("2026-04-20"), _at("2026-05-01")))


def test_a_subscription_that_never_gave_anything_ends_no_period() -> None:
    instant = _at("2026-03-10")
    account_state = _standing(_subscription(instant, instant))
    assert _period(account_state, instant) == ("free", periods.Period(_at("2026-03-01"), _at("2026-04-01")))


def test_a_plan_may_count_calendar_months() -> None:
    account_state = _standing(_subscription(_at("2026-03-10"), plan="basic"))
    for start, end in (("2026-03-10", "2026-04-01"), ("2026-04-01", "2026-05-01")):
        assert _period(account_state, _at(start), AUTOMATION) == ("basic", periods.Period(_at(start), _at(end)))


def test_free_periods_may_be_counted_from_signup() -> None:
    account_state = _standing(created_at=_at("2026-01-31T08:00"))
    expected = ("solo", periods.Period(_at("2026-02-28T08:00"), _at("2026-03-31T08:00")))
    assert _period(account_state, _at("2026-03-01"), ORGS) == expected


def test_what_happened_before_signup_counts_in_the_first_period() -> None:
    created_at = _at("2026-01-31T08:00")
    expected = ("solo", periods.Period(created_at, _at("2026-02-28T08:00")))
    for before in (TICK, timedelta(minutes=5), timedelta(days=99)):
        assert _period(_standing(created_at=created_at), created_at - before, ORGS) == expected


BOUNDS = st.lists(
    st.datetimes(datetime(2025, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001 - as above
    max_size=6,
    unique=True,
).map(sorted)


def _in_a_row(bounds: list[datetime]) -> tuple[terms.PlanSubscription, ...]:
    """One subscription after another; with an odd number of bounds the last one has no end."""
    starts, ends = bounds[::2], [*bounds[1::2], None]
    return tuple(
        _subscription(start, end, name=f"sub_{n}", anchor=start + timedelta(days=n))
        for n, (start, end) in enumerate(zip(starts, ends, strict=False))
    )


@st.composite
def _overlapping(draw: st.DrawFn) -> tuple[terms.PlanSubscription, ...]:
    found = []
    for n in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.lists(st.sampled_from(DAYS), min_size=2, max_size=2)))
        found.append(_subscription(start, draw(st.sampled_from([end, None])), name=f"sub_{n}"))
    return tuple(found)


DAYS = [_at("2026-01-05") + timedelta(days=9 * n) for n in range(12)]
INSTANTS = st.datetimes(datetime(2025, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC))  # noqa: DTZ001 - as above


def _assert_tiled(account_state: terms.AccountState, at: datetime, catalog: model.Catalog) -> None:
    found = _period(account_state, at, catalog)
    period = found[1]
    assert period.start <= at < period.end
    assert _period(account_state, period.start, catalog) == found
    assert _period(account_state, period.end - TICK, catalog) == found
    assert _period(account_state, period.end, catalog)[1].start == period.end
    middle = period.start + (period.end - period.start) / 2
    assert _period(account_state, middle, catalog) == found


@pytest.mark.parametrize("catalog", [NYQST, AUTOMATION], ids=["billing months", "calendar months"])
@given(bounds=BOUNDS, at=INSTANTS)
def test_periods_of_subscriptions_in_a_row_tile_the_time_line(
    catalog: model.Catalog, bounds: list[datetime], at: datetime
) -> None:
    _assert_tiled(_standing(*_in_a_row(bounds)), at, catalog)


@given(subscriptions=_overlapping(), at=st.sampled_from(DAYS), offset=st.timedeltas(timedelta(), timedelta(days=9)))
def test_periods_of_subscriptions_that_overlap_tile_it_too(
    subscriptions: tuple[terms.PlanSubscription, ...], at: datetime, offset: timedelta
) -> None:
    """Going from one subscription to another ends the old period at that instant."""
    _assert_tiled(_standing(*subscriptions), at + offset, NYQST)


def test_from_a_pause_on_charging_is_denying_and_before_it_is_not() -> None:
    since, paused_at = _at("2026-03-01"), _at("2026-03-10")
    paused = terms.PlanSubscription("sub_1", "active", "pro", 1, 1, since, since, since, None, paused_at)
    under = terms.effective_terms(_standing(paused), {1: NYQST}, paused_at)
    before, after = under.allowance("runs", None, paused_at - TICK), under.allowance("runs", None, paused_at)
    assert (before.charges, before.included) == (True, 200)
    assert (after.charges, after.included) == (False, 200)
    assert after.limit is not None
    assert after.limit.beyond == "deny"
    override = terms.Override(300, None, "", "", since)
    assert under.allowance("runs", override, paused_at) == terms.Allowance(after.limit, 300, overridden=True)
    unlimited = under.allowance("reports", None, paused_at)
    assert unlimited.included is None


def _stretches(moves: list[datetime], plans: list[str]) -> tuple[terms.PlanSubscription, ...]:
    """A subscription whose periods were moved; every other stretch begins with a trial of five days."""
    starts, ends = moves, [*moves[1:], None]
    return tuple(
        terms.PlanSubscription("sub_1", "active", plan, 1, 1, start + timedelta(days=5 * (n % 2)), moves[0], start, end)
        for n, (start, end, plan) in enumerate(zip(starts, ends, plans, strict=False))
    )


@pytest.mark.parametrize("catalog", [NYQST, AUTOMATION], ids=["billing months", "calendar months"])
@given(moves=BOUNDS.filter(bool), at=INSTANTS)
def test_periods_of_moved_stretches_tile_the_time_line(
    catalog: model.Catalog, moves: list[datetime], at: datetime
) -> None:
    plan = "pro" if catalog is NYQST else "basic"
    _assert_tiled(_standing(*_stretches(moves, [plan] * len(moves))), at, catalog)


def test_a_move_ends_a_billing_month_but_no_calendar_month() -> None:
    moved_at = _at("2026-03-20")
    billing = _standing(*_stretches([_at("2026-03-10"), moved_at], ["pro", "pro"]))
    assert _period(billing, _at("2026-03-19"))[1] == periods.Period(_at("2026-03-10"), moved_at)
    assert _period(billing, moved_at)[1] == periods.Period(moved_at, _at("2026-03-25"))  # in its trial
    assert _period(billing, _at("2026-03-25"))[1] == periods.Period(_at("2026-03-25"), _at("2026-04-25"))
    calendar = _standing(*_stretches([_at("2026-03-10"), moved_at], ["basic", "basic"]))
    for at in ("2026-03-19", "2026-03-20"):
        assert _period(calendar, _at(at), AUTOMATION)[1] == periods.Period(_at("2026-03-10"), _at("2026-04-01"))


def test_months_before_an_anchor_are_counted_from_the_beginning() -> None:
    """A long trial may be extended; what it has had stays."""
    since = _at("2026-01-10")
    for anchor in (_at("2026-02-25"), _at("2026-03-07")):
        account_state = _standing(_subscription(since, anchor=anchor))
        assert _period(account_state, since)[1] == periods.Period(since, _at("2026-02-10"))
        assert _period(account_state, _at("2026-02-20"))[1] == periods.Period(_at("2026-02-10"), anchor)
        assert _period(account_state, anchor)[1].start == anchor
