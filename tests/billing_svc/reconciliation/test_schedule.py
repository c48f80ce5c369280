"""The worker's scheduled comparison: it finds the same day what nobody told of, and keeps to its reads."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform.database import tables
from billing_svc.platform.findings import store as findings_store
from billing_svc.platform.monitoring import store as monitoring_store
from billing_svc.reconciliation import passes, schedule
from tests.billing_svc.sandboxed import World


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


def schedule_of(world: World, reads_max: int = 1000) -> schedule.Schedule:
    billing = world.billing
    return schedule.Schedule(billing.transactions, versions.CatalogCache(), world.stripe, billing.clock, reads_max)


async def pass_of(world: World, reads_max: int = 1000) -> int:
    """Let a worker do what is due; returns the number of steps."""
    worker, steps = schedule_of(world, reads_max), 0
    while await worker.go_on():
        steps += 1
    return steps


async def subscribed(world: World, *accounts: str) -> None:
    for account_id in accounts:
        await world.subscribe(account_id)
    await world.deliver_new()
    assert await pass_of(world) == 0, "the first pass is due later"


async def use(world: World, account_id: str, units: int) -> None:
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id=account_id, event_id="e1", meter="runs", quantity=units)
    )


async def stored(world: World) -> list[tuple[str, str]]:
    found = await world.billing.transactions.read(findings_store.list_open)
    return [(one.kind, one.account_id) for one in found]


async def failing(world: World, *accounts: str) -> None:
    """Give accounts a report that Stripe refused."""
    for account_id in accounts:
        await use(world, account_id, 203)
    now = world.billing.clock.now()
    for row in await world.rows(tables.usage_counters, tables.usage_counters.c.billable > 0):
        (sold,) = await world.rows(tables.stripe_prices, tables.stripe_prices.c.meter == "runs")
        (subscription,) = await world.rows(tables.subscriptions, tables.subscriptions.c.account_id == row.account_id)
        report = {
            "account_id": row.account_id,
            "report_id": f"r_{row.account_id}",
            "meter": row.meter,
            "period_start": row.period_start,
            "slice": 0,
            "from_units": 0,
            "to_units": 3,
            "plan": "pro",
            "catalog_version": row.catalog_version,
            "subscription_id": subscription.subscription_id,
            "customer_id": subscription.customer_id,
            "stripe_event_name": sold.stripe_event_name,
            "reported_for": now,
            "period_end": row.period_end,
            "identifier": f"i_{row.account_id}",
            "state": "failed",
            "next_attempt_at": now,
            "sealed_at": now,
            "closed_at": now,
            "error": "refused",
        }
        await world.execute(sa.insert(tables.usage_reports).values(**report))
    await world.execute(sa.update(tables.usage_counters).values(sealed=tables.usage_counters.c.billable))


async def test_what_nobody_told_of_is_a_finding_at_the_next_pass_and_closes_when_told(world: World) -> None:
    await subscribed(world, "org_1")
    (row,) = await world.rows(tables.subscriptions)
    await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    world.billing.clock.advance(passes.PASS_EVERY)
    assert await pass_of(world) > 0
    assert await stored(world) == [("subscription", "org_1")]
    assert await pass_of(world) == 0, "the next is due later"
    left, _ = await world.billing.transactions.read(monitoring_store.last_reconciliation) or (None, None)
    assert left == 1
    await world.deliver_new()
    world.billing.clock.advance(passes.PASS_EVERY)
    await pass_of(world)
    assert await stored(world) == []


async def test_units_that_the_worker_is_about_to_seal_are_no_finding_until_their_period_is_over(world: World) -> None:
    await subscribed(world, "org_1")
    await use(world, "org_1", 203)
    world.billing.clock.advance(passes.PASS_EVERY)
    await pass_of(world)
    assert await stored(world) == []
    world.billing.clock.advance(timedelta(days=32))
    await pass_of(world)
    assert ("usage: unsealed", "org_1") in await stored(world)


async def test_a_pass_between_the_weekly_ones_compares_the_usage_that_changed(world: World) -> None:
    await subscribed(world, "org_1", "org_2")
    await use(world, "org_1", 203)
    await use(world, "org_2", 203)
    world.billing.clock.advance(passes.PASS_EVERY)
    await pass_of(world)
    (row,) = await world.rows(tables.reconcile_passes)
    assert (row.is_full, row.full_began_at) == (True, row.began_at), "the first compares everything"
    await world.execute(sa.update(tables.usage_counters).values(sealed=tables.usage_counters.c.billable))
    world.billing.clock.advance(2 * passes.PASS_EVERY)
    await world.execute(
        sa.update(tables.usage_counters)
        .where(tables.usage_counters.c.account_id == "org_2", tables.usage_counters.c.billable > 0)
        .values(updated_at=world.billing.clock.now())
    )
    await pass_of(world)
    (row,) = await world.rows(tables.reconcile_passes)
    assert not row.is_full
    # No report has the units that are marked as sealed: wrong for both, and only one of them has changed.
    assert ("usage: slices", "org_2") in await stored(world)
    assert ("usage: slices", "org_1") not in await stored(world)
    world.billing.clock.advance(passes.FULL_EVERY)
    await pass_of(world)
    assert ("usage: slices", "org_1") in await stored(world)


async def test_a_pass_that_has_used_its_reads_goes_on_where_it_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "ACCOUNTS_MAX", 1)
    await subscribed(world, "org_1", "org_2", "org_3")
    await failing(world, "org_1", "org_2", "org_3")
    world.billing.clock.advance(passes.PASS_EVERY)
    began = world.billing.clock.now()
    found, lists = [], []
    for _ in range(4):
        await pass_of(world, reads_max=1)
        requests = await world.sandbox.requests("GET", "/v1/subscriptions")
        lists.append(sum(one["path"] == "/v1/subscriptions" for one in requests))
        found.append([account_id for kind, account_id in await stored(world) if kind == "usage: failed"])
        world.billing.clock.advance(passes.PASS_EVERY)
    assert found == [[], ["org_1"], ["org_1", "org_2"], ["org_1", "org_2", "org_3"]]
    assert len(set(lists)) == 1, "the lists are not read again"
    (row,) = await world.rows(tables.reconcile_passes)
    assert row.began_at < began + passes.PASS_EVERY, "it is one pass"
    assert row.ended_at is None
    await pass_of(world, reads_max=1)
    (row,) = await world.rows(tables.reconcile_passes)
    assert row.ended_at is not None


async def test_two_workers_share_a_pass_and_a_killed_one_is_replaced(world: World) -> None:
    await subscribed(world, "org_1")
    world.billing.clock.advance(passes.PASS_EVERY)
    now = world.billing.clock.now()
    killed = await world.billing.transactions.run(lambda conn: passes.lease(conn, now))
    assert killed is not None
    assert await pass_of(world) == 0, "another worker has it"
    world.billing.clock.advance(passes.LEASE)
    assert await pass_of(world) > 0
    assert not await world.billing.transactions.run(lambda conn: passes.save(conn, killed, {"reads": 7}))


async def test_stripe_away_closes_no_finding_and_the_step_is_repeated(world: World) -> None:
    await subscribed(world, "org_1")
    (row,) = await world.rows(tables.subscriptions)
    await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    world.billing.clock.advance(passes.PASS_EVERY)
    await pass_of(world)

    async def away(_method: str, _path: str) -> int | None:
        return 503

    world.billing.clock.advance(passes.PASS_EVERY)
    world.sandbox.faults.before = away
    assert await pass_of(world) == 1
    assert await stored(world) == [("subscription", "org_1")]
    world.sandbox.faults.clear()
    assert await pass_of(world) == 0
    await world.deliver_new()
    world.billing.clock.advance(schedule.AGAIN_AFTER)
    assert await pass_of(world) > 0
    assert await stored(world) == []
