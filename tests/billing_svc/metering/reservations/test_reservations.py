"""Holds: made once, closed once, and never in the way when their time is over."""

import asyncio
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf import duration_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.quota import check_quota, holds, lookup
from billing_svc.metering.reservations import hold_units, store
from billing_svc.platform import errors
from billing_svc.platform.database import direct, tables
from tests.billing_svc import books
from tests.billing_svc.service import Billing


async def _reserve(
    billing: Billing, request_id: str, quantity: int = 1, account_id: str = "org_1", ttl_seconds: int = 60
) -> quota_pb2.CheckQuotaResponse:
    return await billing.quota.CheckQuota(
        quota_pb2.CheckQuotaRequest(
            account_id=account_id,
            meter="runs",
            quantity=quantity,
            reserve=True,
            request_id=request_id,
            reservation_ttl=duration_pb2.Duration(seconds=ttl_seconds),
        )
    )


async def _check(billing: Billing, account_id: str = "org_1") -> quota_pb2.CheckQuotaResponse:
    return await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id=account_id, meter="runs"))


async def _record(
    billing: Billing, event_id: str, reservation_id: str, quantity: int = 1, *, reject: bool = False
) -> usage_pb2.RecordUsageResponse:
    return await billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(
            account_id="org_1",
            event_id=event_id,
            meter="runs",
            quantity=quantity,
            reservation_id=reservation_id,
            if_exceeded=usage_pb2.IF_EXCEEDED_REJECT if reject else usage_pb2.IF_EXCEEDED_RECORD,
        )
    )


async def _release(billing: Billing, reservation_id: str) -> quota_pb2.ReleaseReservationResponse:
    return await billing.quota.ReleaseReservation(
        quota_pb2.ReleaseReservationRequest(account_id="org_1", reservation_id=reservation_id)
    )


async def _books(billing: Billing) -> tuple[int, int, int]:
    """Return used and reserved of the one counter of runs, and the units that are held."""
    async with billing.engine.connect() as conn:
        counters = tables.usage_counters
        runs = sa.select(counters.c.used, counters.c.reserved).where(counters.c.meter == "runs")
        row = (await conn.execute(runs)).one()
        held = sa.select(sa.func.coalesce(sa.func.sum(tables.reservations.c.units), 0))
        return (
            row.used,
            row.reserved,
            int((await conn.execute(held.where(tables.reservations.c.state == "held"))).scalar_one()),
        )


async def test_two_hundred_at_once_on_a_limit_of_five_hold_exactly_five(billing: Billing) -> None:
    answers = await asyncio.gather(*(_reserve(billing, f"job_{n}") for n in range(200)))
    allowed = [answer for answer in answers if answer.decision == decision_pb2.DECISION_ALLOWED]
    assert len(allowed) == 5
    assert {answer.reason for answer in answers if answer not in allowed} == {
        decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
    }
    assert await _books(billing) == (0, 5, 5)


async def test_a_hold_takes_up_room_until_it_is_released(billing: Billing) -> None:
    held = await _reserve(billing, "job", 5)
    assert (held.reserved, held.remaining) == (5, 0)
    assert held.reservation_state == quota_pb2.RESERVATION_STATE_HELD
    assert (await _check(billing)).decision == decision_pb2.DECISION_DENIED
    released = await _release(billing, held.reservation_id)
    assert (released.released, released.quantity, released.reserved) == (True, 5, 0)
    again = await _release(billing, held.reservation_id)
    assert (again.released, again.state) == (False, quota_pb2.RESERVATION_STATE_RELEASED)
    assert (await _check(billing)).decision == decision_pb2.DECISION_ALLOWED


async def test_a_reservation_that_is_closed_is_not_closed_again(billing: Billing) -> None:
    held = [await _reserve(billing, f"job_{n}", 2) for n in range(2)]
    key = ("org_1", held[0].reservation_id)
    rows = await billing.transactions.read(lambda conn: direct.fetch(conn, *store.finding([key])))
    stale = [(store.by_id(rows)[key], holds.HoldState.SETTLED, "event")]
    await _release(billing, held[0].reservation_id)
    closed = []

    async def close_and_undo(conn: AsyncConnection) -> None:
        closed.append(await store.close(conn, stale, billing.clock.now()))
        raise errors.LostRace("undone")

    with pytest.raises(errors.LostRace):
        await billing.transactions.run(close_and_undo)
    assert closed == [0]


async def test_the_same_request_is_given_the_same_reservation(billing: Billing) -> None:
    answers = await asyncio.gather(*(_reserve(billing, "job", 2) for _ in range(20)))
    assert len({answer.reservation_id for answer in answers}) == 1
    assert await _books(billing) == (0, 2, 2)


@pytest.mark.parametrize("is_known", [False, True], ids=["a new account", "a known account"])
async def test_a_repeat_beside_its_first_sending_is_given_the_same_reservation(
    billing: Billing, *, is_known: bool
) -> None:
    if is_known:
        await billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id="org_1", event_id="before", meter="reports")
        )
    catalogs, now = versions.CatalogCache(), billing.clock.now()
    hold = holds.Hold("job_1", timedelta(minutes=1), "test")
    question = check_quota.QuotaQuestion(lookup.MeterQuery("org_1", "runs", ""), 5, hold)
    async with billing.engine.connect() as blocking:
        # Another process holds all that there is, under the same request id, and has not committed yet.
        await blocking.execute(sa.text("LOCK TABLE reservations IN SHARE ROW EXCLUSIVE MODE"))
        other = asyncio.ensure_future(
            billing.transactions.run(lambda conn: hold_units.reserve(conn, catalogs, [question], now))
        )
        await books.wait_for_waiters(billing.engine, 1)
        repeat = asyncio.ensure_future(_reserve(billing, "job_1", 5))
        await books.wait_for_waiters(billing.engine, 2)
        await blocking.rollback()
    # Either of them may be the first to insert.
    (first,) = await other
    assert isinstance(first, check_quota.QuotaAnswer | check_quota.RepeatedAnswer)
    assert first.reservation is not None
    answer = await repeat
    assert answer.decision == decision_pb2.DECISION_ALLOWED
    assert answer.reservation_id == first.reservation.reservation_id
    assert await _books(billing) == (0, 5, 5)


async def test_a_request_id_with_other_content_is_refused(billing: Billing) -> None:
    await _reserve(billing, "job", 2)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _reserve(billing, "job", 3)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("used", [1, 3, 5])
async def test_settling_frees_what_was_held_whatever_was_used(billing: Billing, used: int) -> None:
    held = await _reserve(billing, "job", 3)
    recorded = await _record(billing, "run", held.reservation_id, used)
    assert recorded.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_SETTLED
    assert (recorded.used, recorded.reserved, recorded.remaining) == (used, 0, 5 - used)
    assert await _books(billing) == (used, 0, 0)
    closed = await _reserve(billing, "job", 3)
    assert closed.decision == decision_pb2.DECISION_DENIED
    assert closed.reason == decision_pb2.DECISION_REASON_RESERVATION_CLOSED
    assert closed.reservation_state == quota_pb2.RESERVATION_STATE_SETTLED


async def test_only_the_first_event_settles(billing: Billing) -> None:
    held = await _reserve(billing, "job", 2)
    outcomes = await asyncio.gather(*(_record(billing, f"run_{n}", held.reservation_id) for n in range(4)))
    assert sorted(one.reservation_outcome for one in outcomes) == [
        usage_pb2.RESERVATION_OUTCOME_SETTLED,
        *[usage_pb2.RESERVATION_OUTCOME_ALREADY_CLOSED] * 3,
    ]
    assert await _books(billing) == (4, 0, 0)


async def test_settling_counts_its_own_hold_as_its_own_room(billing: Billing) -> None:
    held = await _reserve(billing, "job", 5)
    denied = await _record(billing, "other", "", reject=True)
    assert denied.decision == decision_pb2.DECISION_DENIED
    too_much = await _record(billing, "run", held.reservation_id, 6, reject=True)
    assert too_much.decision == decision_pb2.DECISION_DENIED
    assert await _books(billing) == (0, 5, 5)
    settled = await _record(billing, "run", held.reservation_id, 5, reject=True)
    assert (settled.decision, settled.used, settled.reserved) == (decision_pb2.DECISION_ALLOWED, 5, 0)


async def test_an_expired_hold_stands_in_nobodys_way_before_any_sweep(billing: Billing) -> None:
    held = await _reserve(billing, "job", 5, ttl_seconds=1)
    billing.clock.advance(timedelta(seconds=1))
    check = await _check(billing)
    assert (check.decision, check.reserved, check.remaining) == (decision_pb2.DECISION_ALLOWED, 0, 5)
    second = await _reserve(billing, "job_2", 5)
    assert second.decision == decision_pb2.DECISION_ALLOWED
    late = await _record(billing, "run", held.reservation_id, 2)
    assert late.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_EXPIRED
    assert (late.used, late.reserved) == (2, 5)
    assert await _books(billing) == (2, 5, 5)


async def test_settling_what_expired_but_was_not_swept_counts_and_gives_back(billing: Billing) -> None:
    held = await _reserve(billing, "job", 5, ttl_seconds=1)
    billing.clock.advance(timedelta(seconds=2))
    late = await _record(billing, "run", held.reservation_id, 2, reject=True)
    assert late.decision == decision_pb2.DECISION_ALLOWED
    assert late.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_EXPIRED
    assert await _books(billing) == (2, 0, 0)
    released = await _release(billing, held.reservation_id)
    assert (released.released, released.state) == (False, quota_pb2.RESERVATION_STATE_EXPIRED)


async def test_the_sweep_gives_back_what_has_expired_and_nothing_else(billing: Billing) -> None:
    await _reserve(billing, "short", 2, ttl_seconds=1)
    await _reserve(billing, "long", 1, ttl_seconds=60)
    billing.clock.advance(timedelta(seconds=1))
    assert await billing.transactions.run(lambda conn: hold_units.sweep(conn, billing.clock.now())) == 1
    assert await _books(billing) == (0, 1, 1)
    assert await billing.transactions.run(lambda conn: hold_units.sweep(conn, billing.clock.now())) == 0


async def test_settle_release_and_expiry_race_and_each_unit_comes_back_once(billing: Billing) -> None:
    for n in range(10):
        held = await _reserve(billing, f"job_{n}", 1, ttl_seconds=1)
        assert held.decision == decision_pb2.DECISION_ALLOWED
        billing.clock.advance(timedelta(seconds=n % 2))
        event = _record(billing, f"run_{n}", held.reservation_id) if n < 4 else _release(billing, held.reservation_id)
        await asyncio.gather(
            event,
            _release(billing, held.reservation_id),
            billing.transactions.run(lambda conn: hold_units.sweep(conn, billing.clock.now())),
        )
    assert await _books(billing) == (4, 0, 0)


async def test_a_denied_hold_leaves_no_trace(billing: Billing) -> None:
    denied = await _reserve(billing, "job", 6)
    assert denied.decision == decision_pb2.DECISION_DENIED
    assert denied.reservation_id == ""
    async with billing.engine.connect() as conn:
        for table in (tables.accounts, tables.usage_counters, tables.reservations):
            assert (await conn.execute(sa.select(sa.func.count()).select_from(table))).scalar_one() == 0
    assert (await _reserve(billing, "job", 5)).decision == decision_pb2.DECISION_ALLOWED


async def test_an_unknown_reservation_is_said_to_be_one(billing: Billing) -> None:
    recorded = await _record(billing, "run", "nothing")
    assert recorded.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _release(billing, "nothing")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
