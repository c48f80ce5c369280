"""Every request is repeated: concurrently, later, to another replica, after a restart, and with each field changed."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf import descriptor, message

from billing.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    stripe_event_pb2,
    stripe_event_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import tables, transactions
from billing_svc.programs import server
from billing_svc.stripe import client
from tests.billing_svc import books
from tests.billing_svc.sandboxed import World
from tests.billing_svc.service import TOKEN, tokens
from tests.faults import ledger

Field = descriptor.FieldDescriptor
STUBS = {
    "QuotaService": quota_pb2_grpc.QuotaServiceStub,
    "UsageService": usage_pb2_grpc.UsageServiceStub,
    "SubscriptionService": subscription_pb2_grpc.SubscriptionServiceStub,
    "AdminService": admin_pb2_grpc.AdminServiceStub,
    "StripeEventService": stripe_event_pb2_grpc.StripeEventServiceStub,
}
AT_ONCE = 6
METADATA = (("authorization", f"Bearer {TOKEN}"),)
# Fields that identify a request and its account.
IDENTITY = {
    "account_id",
    "event_id",
    "request_id",
    "correction_id",
    "reservation_id",
    "alert_id",
    "event_ids",
    "payload",
}
OTHERS = {"meter": "llm_tokens", "plan": "other", "price": "yearly", "operation": "other"}
# A repeat may be refused: it is different, or too early or too late.
MAY_BE_REFUSED = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
}
# Leases change with each visit, and have no other effect.
NOT_COMPARED = {tables.stripe_objects.name}


@dataclass(frozen=True)
class Case:
    """A request, and its preparation."""

    service: str
    rpc: str
    request: Callable[[World], Awaitable[message.Message]]


async def account(world: World) -> None:
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="first", meter="api_calls", quantity=5)
    )


async def record(world: World) -> message.Message:
    made = usage_pb2.RecordUsageRequest(
        account_id="org_1", event_id="run", meter="api_calls", quantity=3, properties={"a": "1"}
    )
    made.occurred_at.FromDatetime(world.billing.clock.now())
    return made


async def record_many(world: World) -> message.Message:
    del world
    events = [
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"run_{n}", meter="api_calls") for n in range(5)
    ]
    return usage_pb2.BatchRecordUsageRequest(events=events)


async def hold(world: World) -> message.Message:
    del world
    made = quota_pb2.CheckQuotaRequest(
        account_id="org_1", meter="api_calls", quantity=2, reserve=True, request_id="job"
    )
    made.reservation_ttl.FromSeconds(600)
    return made


async def release(world: World) -> message.Message:
    request = await hold(world)
    assert isinstance(request, quota_pb2.CheckQuotaRequest)
    held = await world.billing.quota.CheckQuota(request)
    return quota_pb2.ReleaseReservationRequest(account_id="org_1", reservation_id=held.reservation_id)


async def correct(world: World) -> message.Message:
    await account(world)
    return usage_pb2.CorrectUsageRequest(
        account_id="org_1", correction_id="void", event_id="first", quantity=2, note="a"
    )


async def override(world: World) -> message.Message:
    del world
    return admin_pb2.SetOverrideRequest(account_id="org_1", meter="api_calls", included=7, note="a", request_id="set")


async def no_override(world: World) -> message.Message:
    request = await override(world)
    assert isinstance(request, admin_pb2.SetOverrideRequest)
    await world.billing.admin.SetOverride(request)
    return admin_pb2.RemoveOverrideRequest(account_id="org_1", meter="api_calls", request_id="remove")


async def accept(world: World) -> message.Message:
    await world.subscribe(plan="standard")
    (event,) = await world.events("customer.subscription.created")
    return stripe_event_pb2.AcceptStripeEventRequest(payload=json.dumps(event).encode())


async def checkout(world: World) -> message.Message:
    del world
    return subscription_pb2.CreateCheckoutRequest(account_id="org_1", plan="standard", request_id="buy")


async def bought(world: World) -> None:
    await world.subscribe(plan="standard")
    await world.deliver_new()


async def change(world: World) -> message.Message:
    await bought(world)
    now = subscription_pb2.TIMING_NOW
    return subscription_pb2.ChangePlanRequest(account_id="org_1", plan="enterprise", timing=now, request_id="change")


async def cancel(world: World) -> message.Message:
    await bought(world)
    end = subscription_pb2.TIMING_AT_PERIOD_END
    return subscription_pb2.CancelSubscriptionRequest(account_id="org_1", timing=end, request_id="cancel")


async def resume(world: World) -> message.Message:
    request = await cancel(world)
    assert isinstance(request, subscription_pb2.CancelSubscriptionRequest)
    await world.billing.subscriptions.CancelSubscription(request)
    return subscription_pb2.ResumeSubscriptionRequest(account_id="org_1", request_id="resume")


async def acknowledge(world: World) -> message.Message:
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="much", meter="api_calls", quantity=1_000)
    )
    alerts = await world.billing.subscriptions.ListAlerts(subscription_pb2.ListAlertsRequest(account_id="org_1"))
    return subscription_pb2.AcknowledgeAlertRequest(account_id="org_1", alert_id=alerts.alerts[0].alert_id)


CASES = [
    Case("UsageService", "RecordUsage", record),
    Case("UsageService", "BatchRecordUsage", record_many),
    Case("UsageService", "CorrectUsage", correct),
    Case("QuotaService", "CheckQuota", hold),
    Case("QuotaService", "ReleaseReservation", release),
    Case("AdminService", "SetOverride", override),
    Case("AdminService", "RemoveOverride", no_override),
    Case("StripeEventService", "AcceptStripeEvent", accept),
    Case("SubscriptionService", "CreateCheckout", checkout),
    Case("SubscriptionService", "ChangePlan", change),
    Case("SubscriptionService", "CancelSubscription", cancel),
    Case("SubscriptionService", "ResumeSubscription", resume),
    Case("SubscriptionService", "AcknowledgeAlert", acknowledge),
]


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


@contextlib.asynccontextmanager
async def replica(world: World, url: str) -> AsyncIterator[grpc.aio.Channel]:
    """Run a second server on the same database; it has no memory of earlier requests."""
    engine, stripe = engines.create_engine(url), client.Stripe.from_settings(world.billing.settings)
    database = transactions.Transactions(engine)
    running = await server.start(world.billing.settings, database, stripe, world.billing.clock, tokens())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel
    await running.stop(1)
    await stripe.close()
    await engine.dispose()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rpc)
async def test_a_repetition_changes_nothing(world: World, database_url: str, case: Case) -> None:
    request = await case.request(world)
    async with replica(world, database_url) as one, replica(world, database_url) as other:
        calls = [call_of(case, channel) for channel in (one, other)]
        # To both servers at once. A call that needs Stripe may be told that another call is under way.
        together = await asyncio.gather(*(attempt(calls[n % 2](request)) for n in range(AT_ONCE)))
        assert set(together) <= {grpc.StatusCode.OK, *MAY_BE_REFUSED, grpc.StatusCode.UNAVAILABLE}, together
        assert await attempt(calls[0](request)) is grpc.StatusCode.OK
        before = await contents(world)
        writes = len(await world.sandbox.writes())
        for call in (*calls, *calls):
            assert await attempt(call(request)) is grpc.StatusCode.OK
            assert await contents(world) == before
        # With each field changed: the same answer or a refusal, but nothing new under the same id.
        for name, changed in changes(request):
            code = await attempt(calls[0](changed))
            assert code in {grpc.StatusCode.OK, *MAY_BE_REFUSED}, name
            assert await contents(world) == before, name
    async with replica(world, database_url) as restarted:
        assert await attempt(call_of(case, restarted)(request)) is grpc.StatusCode.OK
    assert await contents(world) == before
    assert len(await world.sandbox.writes()) == writes
    await ledger.assert_consistent(world.billing.engine)


@pytest.mark.parametrize("rpc", ["RecordUsage", "CheckQuota"])
async def test_repetitions_that_wait_for_the_first_change_nothing(world: World, database_url: str, rpc: str) -> None:
    """All repeats have read that the id is new, and wait for the same counter's lock."""
    await account(world)
    case = next(one for one in CASES if one.rpc == rpc)
    request = await case.request(world)
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(replica(world, database_url)) for _ in range(3)]
        async with world.billing.engine.begin() as holder:
            await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
            going = [asyncio.ensure_future(attempt(call_of(case, one)(request))) for one in channels]
            await books.wait_for_waiters(world.billing.engine, len(going))
        assert set(await asyncio.gather(*going)) == {grpc.StatusCode.OK}
    made = tables.usage_events if rpc == "RecordUsage" else tables.reservations
    # Includes the event that created the account.
    assert len(await world.rows(made)) == (2 if rpc == "RecordUsage" else 1)
    await ledger.assert_consistent(world.billing.engine)


async def test_an_event_id_on_two_meters_at_once_is_recorded_once(world: World, database_url: str) -> None:
    """Each call locks another counter, so both find the id new: only the key of the events stops the second."""
    await account(world)
    events = [
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run", meter=meter)
        for meter in ("api_calls", "llm_tokens")
    ]
    case = next(one for one in CASES if one.rpc == "RecordUsage")
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(replica(world, database_url)) for _ in events]
        async with world.billing.engine.begin() as holder:
            # Blocks the INSERT of an event, but not the look-up of its id.
            await holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
            calls = [call_of(case, channel)(event) for channel, event in zip(channels, events, strict=True)]
            going = [asyncio.ensure_future(attempt(call)) for call in calls]
            await books.wait_for_waiters(world.billing.engine, len(going))
        codes = await asyncio.gather(*going)
    assert sorted(code.name for code in codes) == ["ALREADY_EXISTS", "OK"]
    assert len(await world.rows(tables.usage_events)) == 2
    await ledger.assert_consistent(world.billing.engine)


async def test_the_schema_refuses_a_second_reservation_of_a_request(world: World) -> None:
    """Calls of an account take turns by its lock, and find the first reservation; the key protects from a defect."""
    await account(world)
    request: Any = await hold(world)
    await world.billing.quota.CheckQuota(request)
    async with world.billing.engine.connect() as conn:
        row = (await conn.execute(sa.select(tables.reservations))).mappings().one()
        with pytest.raises(sa.exc.IntegrityError, match="uq_reservations_account_id_request_id"):
            await conn.execute(sa.insert(tables.reservations).values({**row, "reservation_id": "another"}))


def call_of(case: Case, channel: grpc.aio.Channel) -> Callable[[message.Message], Awaitable[Any]]:
    method = getattr(STUBS[case.service](channel), case.rpc)
    return lambda request: method(request, metadata=METADATA, timeout=30)


async def attempt(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def contents(world: World) -> Mapping[str, list[str]]:
    found = await books.contents(world.billing.engine)
    return {name: rows for name, rows in found.items() if name not in NOT_COMPARED}


def changes(request: message.Message) -> list[tuple[str, message.Message]]:
    """Return copies of the request, each with another field changed that is not part of its identity."""
    made = []
    for field in request.DESCRIPTOR.fields:
        if field.name in IDENTITY:
            continue
        changed = type(request)()
        changed.CopyFrom(request)
        if _change(changed, field):
            assert changed != request, field.name
            made.append((field.name, changed))
    return made


def _change(request: message.Message, field: Any) -> bool:  # noqa: ANN401 - a field's descriptor
    value = getattr(request, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value["b"] = "2"
            return True
        return False
    match field.type:
        case Field.TYPE_MESSAGE:
            value.seconds += 1
        case Field.TYPE_STRING:
            setattr(request, field.name, OTHERS.get(field.name, f"{value}x"))
        case Field.TYPE_BOOL:
            setattr(request, field.name, not value)
        case _:
            setattr(request, field.name, 1 if field.type == Field.TYPE_ENUM and value != 1 else value + 1)
    return True
