import asyncio
import itertools
import random
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2
from billing_svc.inbox import rules
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from billing_svc.stripe import leases
from tests.billing_svc.sandboxed import World, event_about

SUBSCRIPTIONS = "/v1/subscriptions"
EVENTS = tables.stripe_events


async def replay(world: World) -> None:
    """Replay failed events, as an operator does."""
    now = world.billing.clock.now()
    await world.execute(
        sa.update(EVENTS).where(EVENTS.c.state == "failed").values(state="waiting", closed_at=None, next_attempt_at=now)
    )


async def audits(world: World, action: str = "subscription.applied") -> list[sa.Row[Any]]:
    return await world.rows(tables.audit_log, tables.audit_log.c.action == action)


async def test_the_same_event_ten_times_at_once_has_one_effect(world: World) -> None:
    await world.subscribe()
    (event,) = await world.events("customer.subscription.created")
    await asyncio.gather(*(world.deliver(event) for _ in range(10)))
    others = [world.second_inbox() for _ in range(3)]
    await asyncio.gather(world.inbox.apply_due(), *(other.apply_due() for other in others))
    await world.apply_all()
    assert await world.inbox_states() == {event["id"]: ("applied", None)}
    (audit,) = await audits(world)
    assert (audit.account_id, audit.actor) == ("org_1", f"stripe:{event['id']}")
    (row,) = await world.rows(tables.subscriptions)
    assert (row.account_id, row.status, row.plan) == ("org_1", "active", "pro")
    fetches = await world.sandbox.requests("GET", f"{SUBSCRIPTIONS}/sub_")
    assert len(fetches) == 1


async def test_one_fetch_serves_all_waiting_events_of_an_object(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", cancel_at_period_end="true")
    await world.deliver(*await world.events("c"))
    await world.apply_all()
    assert len(await world.sandbox.requests("GET", f"{SUBSCRIPTIONS}/sub_")) == 1
    assert len(await audits(world)) == 1
    applied = await world.rows(EVENTS, EVENTS.c.state == "applied")
    assert {row.account_id for row in applied} == {"org_1"}
    assert len([row for row in applied if row.object_id == subscription_id]) == 4


async def test_any_order_and_repetition_ends_in_what_stripe_has(world: World) -> None:
    for ends in (False, True):
        for n, order in enumerate(itertools.permutations(range(3))):
            account_id = f"org_{ends}_{n}"
            known = {event["id"] for event in await world.events("customer.subscription.")}
            subscription_id = await world.subscribe(account_id)
            await world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", cancel_at_period_end="true")
            if ends:
                await world.sandbox.call("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
            else:
                await world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", cancel_at_period_end="false")
            found = [one for one in await world.events("customer.subscription.") if one["id"] not in known]
            # Without the first payment, which makes it active: six orders of three events are enough.
            events = [one for one in found if one["data"].get("previous_attributes") != {"status": "incomplete"}]
            assert len(events) == 3
            rng = random.Random(n)  # noqa: S311 - a seed
            for index in order:
                # Deliver each event several times, under its own id and under a second id, as Stripe may.
                event = events[index]
                twin = {**event, "id": f"{event['id']}_twin"}
                await world.deliver(event, twin, event)
                if rng.random() < 0.5:
                    await world.inbox.apply_due()
            await world.apply_all()
            at_stripe = await world.sandbox.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}")
            (row,) = await world.rows(tables.subscriptions, tables.subscriptions.c.account_id == account_id)
            assert (row.status, row.cancel_at_period_end) == (
                at_stripe["status"],
                at_stripe["cancel_at_period_end"],
            )
            assert (await world.subscription(account_id)).plan == ("free" if ends else "pro")
            # However many events there are, an event that changes nothing has no audit entry.
            assert len([one for one in await audits(world) if one.account_id == account_id]) == 1
    assert {state for state, _ in (await world.inbox_states()).values()} == {"applied"}


async def test_an_object_that_moves_on_during_the_fetch_is_fetched_again_for_its_new_event(world: World) -> None:
    subscription_id = await world.subscribe()
    (created,) = await world.events("customer.subscription.created")
    await world.deliver(created)

    async def move_on(method: str, path: str) -> int | None:
        if method == "GET" and path.startswith(SUBSCRIPTIONS):
            world.sandbox.faults.clear()
            # The answer is under way. Now the object changes, and its event arrives before the first fetch is applied.
            await world.sandbox.call("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
            await world.deliver(*await world.events("customer.subscription.deleted"))
        return None

    world.sandbox.faults.after = move_on
    await world.inbox.apply_due()
    states = [state for state, _ in (await world.inbox_states()).values()]
    assert sorted(states) == ["applied", "waiting"]
    assert (await world.subscription()).plan == "pro"
    await world.apply_all()
    assert (await world.subscription()).plan == "free"


async def test_a_stranger_s_customer_is_ignored(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.execute(sa.update(tables.stripe_customers).values(customer_id="cus_other"))
    await world.deliver(*await world.events("c"))
    await world.apply_all()
    notes = {note for state, note in (await world.inbox_states()).values() if state == "ignored"}
    data = await world.sandbox.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}")
    assert f"customer {data['customer']} is not ours" in notes
    assert await world.rows(tables.subscriptions) == []
    assert (await world.subscription()).plan == "free"


async def test_a_stranger_s_checkout_is_ignored(world: World) -> None:
    await world.deliver(event_about({"id": "cs_1", "object": "checkout.session"}, "checkout.session.expired", "evt_1"))
    await world.apply_all()
    assert await world.inbox_states() == {"evt_1": ("ignored", "this service did not open the checkout")}


@pytest.mark.parametrize("which", ["all", "base"])
async def test_an_unknown_price_fails_and_is_applied_after_a_replay(world: World, which: str) -> None:
    await world.subscribe()
    prices = tables.stripe_prices
    hidden = prices.c.meter == "" if which == "base" else sa.true()
    columns = (prices.c.price_id, prices.c.product_id)
    await world.execute(
        sa.update(prices).where(hidden).values({column: sa.func.concat("hidden_", column) for column in columns})
    )
    await world.deliver(*await world.events("customer.subscription.created"))
    await world.apply_all()
    ((state, note),) = (await world.inbox_states()).values()
    assert state == "failed"
    assert "price" in str(note)
    assert await world.rows(tables.subscriptions) == []
    await world.execute(
        sa.update(prices).values({column: sa.func.replace(column, "hidden_", "") for column in columns})
    )
    await replay(world)
    await world.apply_all()
    assert [state for state, _ in (await world.inbox_states()).values()] == ["applied"]
    assert (await world.subscription()).plan == "pro"


@pytest.mark.parametrize("status", [500, 503, 429, 409, 401])
async def test_a_passing_fault_is_retried_with_back_off_until_it_passes(world: World, status: int) -> None:
    await world.subscribe()
    await world.deliver(*await world.events("customer.subscription.created"))

    async def fail(_method: str, _path: str) -> int | None:
        return status

    world.sandbox.faults.before = fail
    waits = []
    # The SDK repeats some failures itself, after its own pauses.
    for attempt in range(5 if status in {401, 429} else 1):
        before = world.billing.clock.now()
        assert await world.inbox.apply_due() == 1
        (row,) = await world.rows(EVENTS)
        assert (row.state, row.attempts) == ("waiting", attempt + 1)
        assert row.note
        assert await world.inbox.apply_due() == 0, "not before its time"
        waits.append((row.next_attempt_at - before).total_seconds())
        world.billing.clock.advance(row.next_attempt_at - world.billing.clock.now())
    # The wait is a second, doubling; the duration of the call is added.
    assert all(2**n <= wait < 2**n + 5 for n, wait in enumerate(waits)), waits
    world.sandbox.faults.clear()
    await world.inbox.apply_due()
    assert [state for state, _ in (await world.inbox_states()).values()] == ["applied"]
    assert (await world.subscription()).plan == "pro"


async def test_a_new_event_does_not_wait_for_the_back_off_of_older_ones(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.deliver(*await world.events("customer.subscription.created"))
    await world.execute(sa.update(EVENTS).values(next_attempt_at=clock.Clock().now() + timedelta(minutes=5)))
    assert await world.inbox.apply_due() == 0
    await world.sandbox.call("POST", f"{SUBSCRIPTIONS}/{subscription_id}", cancel_at_period_end="true")
    await world.deliver(*await world.events("customer.subscription.updated"))
    assert await world.inbox.apply_due() == 1
    assert {state for state, _ in (await world.inbox_states()).values()} == {"applied"}


def test_the_back_off_doubles_up_to_five_minutes() -> None:
    now = clock.Clock().now()
    waits = [(rules.retry_at(attempts, now) - now).total_seconds() for attempts in (0, 1, 2, 8, 9, 10, 10**9)]
    assert waits == [1, 2, 4, 256, 300, 300, 300]


async def _gone(world: World) -> Mapping[str, Any]:
    """Return a subscription of ours that Stripe does not have any more."""
    subscription_id = await world.subscribe()
    data = await world.sandbox.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}")

    async def missing(_method: str, path: str) -> int | None:
        return 404 if path.startswith(SUBSCRIPTIONS) else None

    world.sandbox.faults.before = missing
    return data


async def test_a_404_applies_what_a_deleted_event_carries(world: World) -> None:
    data = await _gone(world)
    ended = {**data, "status": "canceled", "ended_at": data["created"] + 1}
    updated = event_about(data, "customer.subscription.updated")
    deleted = event_about(ended, "customer.subscription.deleted")
    # In either order of delivery.
    await world.deliver(deleted, updated)
    await world.apply_all()
    assert {state for state, _ in (await world.inbox_states()).values()} == {"applied"}
    assert (await world.subscription()).status == subscription_pb2.STATUS_CANCELED


async def test_a_404_fails_anything_else(world: World) -> None:
    data = await _gone(world)
    await world.deliver(event_about(data, "customer.subscription.updated", "evt_1"))
    await world.apply_all()
    assert await world.inbox_states() == {"evt_1": ("failed", f"Stripe has no subscription {data['id']}")}
    assert await world.rows(tables.subscriptions) == []


@pytest.mark.parametrize("expanded", [False, True])
async def test_a_status_that_is_not_known_keeps_what_was(world: World, expanded: bool) -> None:  # noqa: FBT001 - pytest's way
    data = await _gone(world)
    customer = {"id": data["customer"], "object": "customer"} if expanded else data["customer"]
    # A 404 makes the service use the event's own data, so it can get an object that the sandbox never has.
    first = event_about({**data, "customer": customer}, "customer.subscription.deleted")
    await world.deliver(first)
    await world.apply_all()
    assert (await world.subscription()).plan == "pro"
    unknown = event_about({**data, "customer": customer, "status": "gone_fishing"}, "customer.subscription.deleted")
    await world.deliver(unknown)
    await world.apply_all()
    told = await world.subscription()
    assert (told.plan, told.status) == ("pro", subscription_pb2.STATUS_UNKNOWN)


async def test_one_object_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    await world.subscribe()
    await world.deliver(*await world.events("customer.subscription.created"))
    await world.execute(sa.update(EVENTS).values(event_id="evt_0"))
    good = {"id": "sub_other", "object": "subscription"}
    await world.deliver(event_about(good, "customer.subscription.updated", "evt_1"))
    await world.execute(sa.update(EVENTS).where(EVENTS.c.event_id == "evt_1").values(body=b"\x00 no longer JSON"))
    await world.apply_all()
    states = await world.inbox_states()
    assert states["evt_0"][0] == "applied"
    assert states["evt_1"][0] == "failed"


class TestLeases:
    async def test_while_one_worker_holds_an_object_another_leaves_it(self, world: World) -> None:
        await world.subscribe()
        await world.deliver(*await world.events("customer.subscription.created"))
        held, released = asyncio.Event(), asyncio.Event()

        async def hold(_method: str, _path: str) -> int | None:
            held.set()
            await released.wait()
            return None

        world.sandbox.faults.before = hold
        first = asyncio.create_task(world.inbox.apply_due())
        await held.wait()
        assert await world.second_inbox().apply_due() == 0
        released.set()
        assert await first == 1
        assert len(await audits(world)) == 1

    async def test_a_worker_that_lost_its_lease_writes_nothing(self, world: World) -> None:
        subscription_id = await world.subscribe()
        await world.deliver(*await world.events("customer.subscription.created"))
        fetched, overtaken = asyncio.Event(), asyncio.Event()

        async def stall(_method: str, path: str) -> int | None:
            if path.startswith(SUBSCRIPTIONS) and not fetched.is_set():
                fetched.set()
                await overtaken.wait()
            return None

        # It has fetched the old state when it stalls.
        world.sandbox.faults.after = stall
        slow = asyncio.create_task(world.inbox.apply_due())
        await fetched.wait()
        await world.sandbox.call("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
        await world.deliver(*await world.events("customer.subscription.deleted"))
        late = clock.Clock(leases.LEASE)
        assert await world.second_inbox(late).apply_due() == 1
        before = await world.rows(EVENTS)
        assert (await world.subscription()).plan == "free"
        overtaken.set()
        await slow
        assert (await world.subscription()).plan == "free"
        assert await world.rows(EVENTS) == before
        assert len(await audits(world)) == 1

    async def test_the_object_of_a_killed_worker_is_taken_up_when_its_lease_is_over(self, world: World) -> None:
        await world.subscribe()
        await world.deliver(*await world.events("customer.subscription.created"))
        killed = asyncio.create_task(world.inbox.apply_due())
        world.sandbox.faults.crash(1, after=True, task=lambda: killed)
        await asyncio.wait({killed})
        world.sandbox.faults.clear()
        assert killed.cancelled()
        other = world.second_inbox()
        assert await other.apply_due() == 0
        world.billing.clock.advance(leases.LEASE)
        assert await other.apply_due() == 1
        assert (await world.subscription()).plan == "pro"

    async def test_an_object_without_waiting_events_is_not_held_up(self, world: World) -> None:
        # Two workers read the same due event, and the second begins after the first has finished.
        await world.subscribe()
        await world.deliver(*await world.events("customer.subscription.created"))
        (row,) = await world.rows(EVENTS)
        await world.apply_all()
        assert await world.inbox._take(row.object_id) is None  # noqa: SLF001 - the instant between two statements
        (held,) = await world.rows(tables.stripe_objects)
        assert held.leased_until <= world.billing.clock.now()


async def test_after_a_deleted_customer_the_next_checkout_makes_a_new_one(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.deliver_new()
    customer_id = (await world.sandbox.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}"))["customer"]
    await world.sandbox.call("DELETE", f"/v1/customers/{customer_id}")
    await world.deliver_new()
    assert {state for state, _ in (await world.inbox_states()).values()} <= {"applied", "ignored"}
    assert (await world.subscription()).plan == "free"
    assert (await world.rows(tables.accounts))[0].customer_id is None
    await world.subscribe()
    await world.deliver_new()
    (account,) = await world.rows(tables.accounts)
    assert account.customer_id not in {None, customer_id}
    assert (await world.subscription()).plan == "pro"
