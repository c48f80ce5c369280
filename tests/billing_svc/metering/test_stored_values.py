"""Each value goes to the column of its name and comes back from it: all of them are different here."""

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.catalog import loading
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import holds, periods, terms
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import store as quota_store
from billing_svc.metering.reservations import store as reservations_store
from billing_svc.metering.usage import rules, store
from billing_svc.platform.database import direct, tables
from billing_svc.platform.database import transactions as transactions_module
from tests.billing_svc.service import CATALOGS

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)


def _at(days: int) -> datetime:
    return NOW - timedelta(days=days)


SUBSCRIPTION = terms.PlanSubscription(
    subscription_id="sub_1",
    status="past_due",
    plan="pro",
    catalog_version=1,
    quantity=2,
    anchor=_at(14),
    effective_from=_at(16),
    since=_at(13),
    effective_until=NOW + timedelta(days=9),
)
PAST_STRETCH = terms.PlanSubscription(
    subscription_id="sub_1",
    status="active",
    plan="starter",
    catalog_version=1,
    quantity=3,
    anchor=_at(17),
    effective_from=_at(16),
    since=_at(15),
    effective_until=_at(13),
)
OVERRIDE = terms.Override(included=31, expires_at=NOW + timedelta(days=8), note="why", set_by="who", set_at=_at(12))
COUNTER = quota_rules.Counter(used=41, reserved=0, billable=17, exceeded_at=_at(3), level=23)
SENT = rules.SentEvent(
    meter="sent meter", operation="operation", quantity=51, level=52, occurred_at=_at(2), properties={"key": "value"}
)
RECORDED = rules.RecordedEvent(
    meter="runs",
    units=61,
    billable=62,
    period_start=_at(11),
    period_end=NOW + timedelta(days=7),
    plan="plan",
    catalog_version=63,
    used=64,
    reserved=65,
    total_billable=66,
    remaining=67,
    included=68,
    overridden=True,
    reason=quota_rules.Reason.GRACE,
    superseded=False,
    reservation_outcome=holds.SettlementOutcome.SETTLED,
)
EVENT = rules.NewEvent(
    account_id="org_1",
    event_id="event",
    sent=SENT,
    retry_attempt=71,
    reject=False,
    reservation_id="reservation",
    caller="caller",
    request_id="request",
)


def _under() -> terms.EffectiveTerms:
    catalog = loading.load_file(CATALOGS / "nyqst.yaml")
    return terms.EffectiveTerms(
        catalog_version=81,
        catalog=catalog,
        plan=catalog.plan("pro"),
        subscription=SUBSCRIPTION,
        quantity=82,
        pay_as_you_go=True,
        period=periods.Period(RECORDED.period_start, NOW + timedelta(days=6)),
    )


async def _row(engine: AsyncEngine, table: sa.Table) -> dict[str, object]:
    async with engine.connect() as conn:
        return dict((await conn.execute(sa.select(table))).mappings().one())


async def test_events_and_counters_are_written_to_their_columns_and_read_from_them(
    transactions: transactions_module.Transactions, engine: AsyncEngine
) -> None:
    under, allowance = _under(), terms.Allowance(None, included=91, overridden=True)
    key = ("org_1", "runs", RECORDED.period_start)
    opened = {key: counters_store.CounterUpdate(COUNTER, under, allowance)}
    held = rules.HeldPart(plan="held plan", catalog_version=72, billable=73)
    stored = store.StoredEvent(EVENT, occurred_at=_at(1), recorded_at=NOW, recorded=RECORDED, held=held)

    async def write(conn: AsyncConnection) -> None:
        store.write(conn, [stored], {}, opened, ["org_1"], NOW)

    await transactions.run(write)
    rows = await transactions.read(lambda conn: direct.fetch(conn, *store.finding([EVENT.key])))
    assert store.to_events(rows) == {EVENT.key: (SENT, RECORDED)}
    assert await _row(engine, tables.usage_events) == {
        "account_id": "org_1",
        "event_id": "event",
        "sent_meter": "sent meter",
        "sent_operation": "operation",
        "sent_quantity": 51,
        "sent_level": 52,
        "sent_occurred_at": _at(2),
        "properties": {"key": "value"},
        "meter": "runs",
        "period_start": _at(11),
        "units": 61,
        "billable": 62,
        "occurred_at": _at(1),
        "recorded_at": NOW,
        "retry_attempt": 71,
        "corrects_event_id": None,
        "reservation_id": "reservation",
        "reservation_outcome": "settled",
        "caller": "caller",
        "request_id": "request",
        "period_end": NOW + timedelta(days=7),
        "plan": "plan",
        "catalog_version": 63,
        "used_after": 64,
        "reserved_after": 65,
        "billable_after": 66,
        "remaining_after": 67,
        "included": 68,
        "overridden": True,
        "reason": "GRACE",
        "superseded": False,
        "held_plan": "held plan",
        "held_catalog_version": 72,
        "held_billable": 73,
    }
    locked = await transactions.run(lambda conn: counters_store.lock_counters(conn, [key]))
    totals = quota_rules.Counter(used=41, billable=17, exceeded_at=_at(3))
    assert locked == {
        key: counters_store.LockedCounter(
            counter=totals,
            period_end=under.period.end,
            catalog_version=81,
            plan="pro",
            quantity=82,
            pay_as_you_go=True,
            included=91,
            overridden=True,
        )
    }
    assert await _row(engine, tables.usage_counters) == {
        "account_id": "org_1",
        "meter": "runs",
        "period_start": _at(11),
        "period_end": under.period.end,
        "used": 41,
        "level": 23,
        "reserved": 0,
        "billable": 17,
        "sealed": 0,
        "catalog_version": 81,
        "plan": "pro",
        "subscription_id": "sub_1",
        "quantity": 82,
        "pay_as_you_go": True,
        "included": 91,
        "overridden": True,
        "exceeded_at": _at(3),
        "updated_at": NOW,
    }


async def test_a_decision_reads_each_fact_from_its_column(engine: AsyncEngine, published_catalog: int) -> None:
    account = {
        "account_id": "org_1",
        "created_at": _at(30),
        "pay_as_you_go_under": "sub_1",
        "history_until": PAST_STRETCH.effective_until,
    }
    columns = dataclasses.asdict(SUBSCRIPTION)
    moved_at = columns.pop("since")
    subscription = {
        **columns,
        "moved_at": moved_at,
        "account_id": "org_1",
        "customer_id": "cus_1",
        "price": "monthly",
        "is_plan": True,
        "billing_period_start": _at(10),
        "billing_period_end": _at(9),
        "cancel_at_period_end": False,
        "updated_at": NOW,
    }
    counter = {
        "period_start": _at(11),
        "period_end": NOW + timedelta(days=6),
        "used": 41,
        "reserved": 19,
        "billable": 17,
        "exceeded_at": _at(3),
        "catalog_version": 81,
        "plan": "pro",
        "quantity": 82,
        "pay_as_you_go": True,
        "overridden": True,
        "updated_at": NOW,
    }
    async with engine.begin() as conn:
        await conn.execute(sa.insert(tables.accounts).values(account))
        await conn.execute(sa.insert(tables.subscriptions).values(subscription))
        past = {"account_id": "org_1", "is_plan": True, "billing_period_start": _at(15)}
        past |= dataclasses.asdict(PAST_STRETCH)
        del past["missing_meters"]  # of the present items; a past stretch lacks none
        await conn.execute(sa.insert(tables.subscription_history).values(past))
        await conn.execute(
            sa.insert(tables.account_overrides).values(account_id="org_1", meter="runs", **dataclasses.asdict(OVERRIDE))
        )
        await conn.execute(sa.insert(tables.usage_counters).values(account_id="org_1", meter="runs", **counter))
        level = {"account_id": "org_1", "meter": "runs", "level": 23, "opened_until": NOW}
        await conn.execute(sa.insert(tables.gauge_levels).values(level))
        await conn.execute(sa.insert(tables.rate_windows).values(account_id="org_1", window_start=_at(0), admitted=29))
    asked = [("org_1", "runs")]
    expected = quota_store.MeterFacts(
        account_state=terms.AccountState(
            newest_catalog=published_catalog,
            created_at=_at(30),
            pay_as_you_go_under="sub_1",
            subscriptions=(SUBSCRIPTION, PAST_STRETCH),
        ),
        override=OVERRIDE,
        level=23,
        window=quota_rules.RateWindow(start=NOW, admitted=29),
        counters={_at(11): quota_rules.Counter(used=41, reserved=19, billable=17, exceeded_at=_at(3))},
        held=19,
    )
    for questions in (asked, asked * 2):
        async with engine.connect() as conn:
            read, _ = await quota_store.read_facts(conn, questions, NOW, levels=True, windows=True)
        assert read == [expected] * len(questions)


async def test_a_hold_is_written_to_its_columns_and_read_from_them(
    transactions: transactions_module.Transactions, engine: AsyncEngine
) -> None:
    first = holds.FirstAnswer(
        period_end=NOW + timedelta(days=5),
        plan="plan",
        catalog_version=11,
        quantity=12,
        pay_as_you_go=True,
        past_due=False,
        included=13,
        overridden=True,
        used=14,
        reserved=15,
        billable=16,
        remaining=17,
        reason=quota_rules.Reason.OVERAGE,
        units_beyond=18,
        projected_cost=Decimal("1.90"),
        grace_ends_at=NOW + timedelta(days=4),
    )
    reservation = holds.Reservation(
        account_id="org_1",
        reservation_id="reservation",
        request_id="request",
        meter="runs",
        period_start=_at(11),
        units=21,
        expires_at=NOW + timedelta(days=3),
        created_at=_at(1),
        sent=holds.SentHold("sent meter", "operation", 22),
        state=holds.HoldState.HELD,
        first=first,
    )

    async def write(conn: AsyncConnection) -> None:
        await direct.fetch_each(conn, reservations_store.insertion([(reservation, "caller")]))

    await transactions.run(write)
    async with engine.connect() as conn:
        finding = reservations_store.finding([("org_1", "reservation")])
        by_request = reservations_store.finding_by_request([("org_1", "request")])
        found, found_by_request = await direct.fetch_each(conn, finding, by_request)
    assert reservations_store.by_id(found) == {("org_1", "reservation"): reservation}
    assert reservations_store.by_request(found_by_request) == {("org_1", "request"): reservation}
    row = await _row(engine, tables.reservations)
    kept = {name: row.pop(name) for name in [field.name for field in dataclasses.fields(first)]}
    assert kept == dataclasses.asdict(first)
    assert row == {
        "account_id": "org_1",
        "reservation_id": "reservation",
        "request_id": "request",
        "meter": "runs",
        "period_start": _at(11),
        "units": 21,
        "sent_meter": "sent meter",
        "sent_operation": "operation",
        "sent_quantity": 22,
        "state": "held",
        "created_at": _at(1),
        "expires_at": NOW + timedelta(days=3),
        "closed_at": None,
        "event_id": None,
        "caller": "caller",
    }
