"""Refreshing a subscription immediately, while the worker may apply it too."""

import asyncio

import pytest

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.stripe import client, leases
from billing_svc.subscriptions.records import refresh_subscription
from tests.billing_svc.sandboxed import World

SUBSCRIPTIONS = "/v1/subscriptions"
ORIGIN = audit_store.Origin("caller:test", "r1")


def refresher(
    world: World, wait_seconds_max: float = 1.0, now: clock.Clock | None = None
) -> refresh_subscription.Refresher:
    return refresh_subscription.Refresher(
        world.billing.transactions,
        versions.CatalogCache(),
        world.stripe,
        now or world.billing.clock,
        wait_seconds_max,
    )


async def test_a_refreshed_subscription_is_in_force_before_its_event_and_audited_to_the_caller(world: World) -> None:
    subscription_id = await world.subscribe()
    assert await refresher(world).refresh(subscription_id, ORIGIN) == "org_1"
    assert (await world.subscription()).plan == "pro"
    rows = await world.rows(tables.audit_log, tables.audit_log.c.action == "subscription.applied")
    assert [(row.account_id, row.actor, row.request_id) for row in rows] == [("org_1", "caller:test", "r1")]
    await world.deliver_new()
    assert len(await world.rows(tables.audit_log, tables.audit_log.c.action == "subscription.applied")) == 1


async def test_a_refresh_waits_for_a_worker_and_sees_what_came_after_it(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.deliver(*await world.events("customer.subscription."))
    fetched, released = asyncio.Event(), asyncio.Event()

    async def hold(_method: str, path: str) -> int | None:
        if path.startswith(SUBSCRIPTIONS) and not fetched.is_set():
            fetched.set()
            await released.wait()
        return None

    # The worker has fetched the old state; the RPC changes it before the worker writes.
    world.sandbox.faults.after = hold
    worker = asyncio.create_task(world.inbox.apply_due())
    await fetched.wait()
    await world.sandbox.call("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
    refreshed = asyncio.create_task(refresher(world, 10).refresh(subscription_id, ORIGIN))
    await asyncio.sleep(0.1)
    assert not refreshed.done()
    released.set()
    await asyncio.gather(worker, refreshed)
    assert (await world.subscription()).status == subscription_pb2.STATUS_CANCELED


async def test_a_refresh_gives_up_on_a_lease_that_does_not_come_free(world: World) -> None:
    subscription_id = await world.subscribe()
    now = world.billing.clock.now()
    lease = await world.billing.transactions.run(lambda conn: leases.take(conn, subscription_id, now))
    assert lease is not None
    with pytest.raises(errors.LostRace):
        await refresher(world, 0.2).refresh(subscription_id, ORIGIN)
    # The other holder still has the lease.
    assert await world.billing.transactions.run(lambda conn: leases.end(conn, lease, now))


@pytest.mark.parametrize("status", [401, 404])
async def test_a_failed_fetch_gives_the_lease_back(world: World, status: int) -> None:
    subscription_id = await world.subscribe()

    async def fail(_method: str, _path: str) -> int | None:
        return status

    world.sandbox.faults.before = fail
    with pytest.raises((errors.StripeUnavailable, client.NotAtStripe)):
        await refresher(world).refresh(subscription_id, ORIGIN)
    world.sandbox.faults.clear()
    assert await refresher(world, 0.2).refresh(subscription_id, ORIGIN) == "org_1"


async def test_a_cancelled_caller_gives_the_lease_back(world: World) -> None:
    subscription_id = await world.subscribe()
    task: asyncio.Task[str] | None = None

    def running() -> asyncio.Task[str]:
        assert task is not None
        return task

    world.sandbox.faults.crash(1, after=True, task=running)
    task = asyncio.create_task(refresher(world).refresh(subscription_id, ORIGIN))
    await asyncio.wait({task})
    assert task.cancelled()
    world.sandbox.faults.clear()
    assert await refresher(world, 0.5).refresh(subscription_id, ORIGIN) == "org_1"


async def test_a_refresh_that_was_overtaken_writes_nothing_and_fetches_again(world: World) -> None:
    subscription_id = await world.subscribe()
    fetched, overtaken = asyncio.Event(), asyncio.Event()

    async def stall(_method: str, path: str) -> int | None:
        if path.startswith(SUBSCRIPTIONS) and not fetched.is_set():
            fetched.set()
            await overtaken.wait()
        return None

    world.sandbox.faults.after = stall
    slow = asyncio.create_task(refresher(world, 10).refresh(subscription_id, ORIGIN))
    await fetched.wait()
    await world.sandbox.call("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
    late = clock.Clock(leases.LEASE)
    await refresher(world, 1, late).refresh(subscription_id, audit_store.Origin("caller:other"))
    world.billing.clock.advance(leases.LEASE)
    overtaken.set()
    assert await slow == "org_1"
    assert (await world.subscription()).status == subscription_pb2.STATUS_CANCELED
    rows = await world.rows(tables.audit_log, tables.audit_log.c.action == "subscription.applied")
    assert [row.actor for row in rows] == ["caller:other"]
