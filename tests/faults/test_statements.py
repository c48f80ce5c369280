"""A lost connection, a serialization failure, a deadlock or a defect at each statement: all or nothing is stored."""

import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from billing.v1 import admin_pb2, quota_pb2, stripe_event_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform import errors
from billing_svc.platform.database import tables
from billing_svc.stripe import leases
from billing_svc.usage_export import accrual
from tests.billing_svc import books, injecting
from tests.billing_svc.sandboxed import (
    World,
    event_about,
)
from tests.billing_svc.service import Billing
from tests.faults import ledger, runs

# More than any case has; the test fails if a case has more.
STATEMENTS_MAX = 40
ACCEPTED = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED}

Step = Callable[[Billing, str], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """An operation on an account: its preparation, the operation, and a query that counts its effects."""

    before: Step
    do: Step
    effect: str


async def nothing(_billing: Billing, _account_id: str) -> None:
    pass


async def reserve(billing: Billing, account_id: str) -> str:
    request = quota_pb2.CheckQuotaRequest(account_id=account_id, meter="runs", reserve=True, request_id="job")
    answer = await billing.quota.CheckQuota(request)
    return answer.reservation_id


async def reservation(billing: Billing, account_id: str) -> str:
    async with billing.engine.connect() as conn:
        found = sa.select(tables.reservations.c.reservation_id).where(tables.reservations.c.account_id == account_id)
        return str((await conn.execute(found)).scalar_one())


async def record(billing: Billing, account_id: str) -> object:
    request = usage_pb2.RecordUsageRequest(account_id=account_id, event_id="run", meter="runs", quantity=205)
    return await billing.usage.RecordUsage(request)


async def settle(billing: Billing, account_id: str) -> object:
    reservation_id = await reservation(billing, account_id)
    request = usage_pb2.RecordUsageRequest(
        account_id=account_id, event_id="run", meter="runs", reservation_id=reservation_id
    )
    return await billing.usage.RecordUsage(request)


async def release(billing: Billing, account_id: str) -> object:
    reservation_id = await reservation(billing, account_id)
    request = quota_pb2.ReleaseReservationRequest(account_id=account_id, reservation_id=reservation_id)
    return await billing.quota.ReleaseReservation(request)


async def correct(billing: Billing, account_id: str) -> object:
    request = usage_pb2.CorrectUsageRequest(account_id=account_id, event_id="run", correction_id="void", quantity=2)
    return await billing.usage.CorrectUsage(request)


async def accept(billing: Billing, account_id: str) -> object:
    event = event_about({"id": "sub_1", "object": "subscription"}, "a.b", f"evt_{account_id}")
    payload = json.dumps(event).encode()
    return await billing.events.AcceptStripeEvent(stripe_event_pb2.AcceptStripeEventRequest(payload=payload))


async def override(billing: Billing, account_id: str) -> object:
    request = admin_pb2.SetOverrideRequest(
        account_id=account_id, meter="runs", included=7, note="a test", request_id="set"
    )
    return await billing.admin.SetOverride(request)


async def overage(billing: Billing, account_id: str) -> None:
    """Record more than is included, with a subscription that charges it."""
    since = billing.clock.now() - timedelta(days=1)
    await books.subscribe(billing.engine, account_id, "pro", since=since, subscription_id=f"sub_{account_id}")
    await record(billing, account_id)
    async with billing.engine.begin() as conn:
        one = sa.update(tables.accounts).where(tables.accounts.c.account_id == account_id)
        await conn.execute(one.values(customer_id=f"cus_{account_id}"))


async def seal(billing: Billing, account_id: str) -> object:
    minute = timedelta(minutes=1)
    sealer = accrual.Accrual(billing.transactions, versions.CatalogCache(), billing.clock, minute, minute)
    return await sealer.seal(account_id)


CASES = {
    "reserve": Case(nothing, reserve, "SELECT count(*) FROM reservations WHERE account_id = :account"),
    "settle": Case(
        reserve, settle, "SELECT count(*) FROM reservations WHERE account_id = :account AND state = 'settled'"
    ),
    "release": Case(
        reserve, release, "SELECT count(*) FROM reservations WHERE account_id = :account AND state = 'released'"
    ),
    "correct": Case(
        record, correct, "SELECT count(*) FROM usage_events WHERE account_id = :account AND event_id = 'void'"
    ),
    "accept": Case(nothing, accept, "SELECT count(*) FROM stripe_events WHERE event_id = 'evt_' || :account"),
    "override": Case(nothing, override, "SELECT count(*) FROM account_overrides WHERE account_id = :account"),
    "seal": Case(overage, seal, "SELECT count(*) FROM usage_reports WHERE account_id = :account"),
}


@pytest.fixture(name="faults")
def all_faults(database_url: str) -> Iterator[list[injecting.Fault]]:
    assassin = injecting.Assassin(database_url)
    yield [injecting.serialization_failure, injecting.deadlock, assassin, injecting.defect]
    assassin.close()


async def attempt(step: Awaitable[object]) -> grpc.StatusCode:
    try:
        await step
    except grpc.aio.AioRpcError as error:
        return error.code()
    except errors.BillingError as error:
        return error.code
    except ZeroDivisionError:
        return grpc.StatusCode.INTERNAL
    return grpc.StatusCode.OK


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_at_each_statement_leaves_all_or_nothing(
    billing: Billing, faults: list[injecting.Fault], run: runs.Run, name: str
) -> None:
    case, rng = CASES[name], run.rng(name)
    # Each fault once and lasting; a short run tries all at the first statement, and a random fault at each other.
    kinds = list(itertools.product(faults, (False, True)))
    for at in itertools.count(1):
        assert at < STATEMENTS_MAX
        statements = 0
        for n, (fault, lasting) in enumerate(kinds if run.minutes or at == 1 else rng.sample(kinds, 1)):
            account_id = f"org_{at}_{n}"
            await case.before(billing, account_id)
            engine = billing.transactions._engine  # noqa: SLF001 - nobody else needs it
            # Captured, because rendering a hundred tracebacks takes longer than the rest of the test.
            with capture_logs(), injecting.Faulty(engine, fault, at, lasting=lasting) as faulty:
                code = await attempt(case.do(billing, account_id))
            statements = max(statements, faulty.statements)
            assert code in ACCEPTED
            await billing.transactions.drain()
            assert await effect(billing, case, account_id) == (code is grpc.StatusCode.OK)
            await ledger.assert_consistent(billing.engine)
            assert await attempt(case.do(billing, account_id)) is grpc.StatusCode.OK
            assert await effect(billing, case, account_id) == 1
            await ledger.assert_consistent(billing.engine)
        if statements < at:
            break
    run.count(statements=at - 1)
    assert at > 1


async def effect(billing: Billing, case: Case, account_id: str) -> int:
    async with billing.engine.connect() as conn:
        return int(await conn.scalar(sa.text(case.effect), {"account": account_id}) or 0)


async def test_a_fault_at_each_statement_of_applying_an_event_is_made_up_for(
    world: World, faults: list[injecting.Fault], run: runs.Run
) -> None:
    rng, lease = run.rng("apply"), leases.LEASE
    # Each account needs a checkout, so a short run tests only some statements, different ones for each seed.
    every = 5 if run.minutes is None else 1
    for at in itertools.count(rng.randint(1, every), every):
        assert at < STATEMENTS_MAX
        account_id = f"org_{at}"
        known = {event["id"] for event in await world.events("customer.subscription.")}
        await world.subscribe(account_id)
        event = next(one for one in await world.events("customer.subscription.") if one["id"] not in known)
        await world.deliver(event)
        engine = world.billing.transactions._engine  # noqa: SLF001 - as above
        faulty = injecting.Faulty(engine, rng.choice(faults), at, lasting=rng.random() < 0.5)
        # An injected defect fails the work on its object; the worker's loop would log it.
        with capture_logs(), faulty, contextlib.suppress(ExceptionGroup):
            await attempt(world.inbox.apply_due())
        await world.billing.transactions.drain()
        # The event is marked in the same transaction that applies it.
        is_applied = (await world.inbox_states())[event["id"]][0] == "applied"
        rows = await world.rows(tables.subscriptions, tables.subscriptions.c.account_id == account_id)
        assert bool(rows) == is_applied
        world.billing.clock.advance(lease)
        await world.apply_all()
        assert (await world.inbox_states())[event["id"]][0] == "applied"
        assert (await world.subscription(account_id)).plan == "pro"
        run.count(statements=faulty.statements)
        if faulty.statements < at:
            break
