"""Single faults between the service and the sandbox: each unit is counted there once."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform import errors
from billing_svc.platform.database import tables
from billing_svc.reconciliation import usage
from billing_svc.reconciliation.discrepancies import DiscrepancyKind
from billing_svc.stripe import leases
from billing_svc.usage_export import export_now, meter_errors, retry_failed
from tests.billing_svc.sandboxed import World
from tests.billing_svc.usage_export.working import ORIGIN, Worker, drifts, record, reports, subscribed, worker_of

EVENTS = "/v1/billing/meter_events"


async def on_the_meter(world: World, name: str = "nyqst_pro_runs") -> int:
    """Return the units that the sandbox's meter has for the only customer."""
    meter = next(one for one in await world.sandbox.all("/v1/billing/meters") if one["event_name"] == name)
    customer = (await world.rows(tables.stripe_customers))[0].customer_id
    now = int(world.billing.clock.now().timestamp())
    start, end = (now - 40 * 86400) // 60 * 60, (now + 40 * 86400) // 60 * 60
    path = f"/v1/billing/meters/{meter['id']}/event_summaries"
    found = await world.sandbox.call("GET", path, customer=customer, start_time=start, end_time=end)
    return int(sum(one["aggregated_value"] for one in found["data"]))


async def overage(world: World, units: int) -> None:
    """Subscribe, and exceed the included units by so many."""
    await subscribed(world)
    await record(world, "runs", 200 + units, "first")


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "between the call and the mark"])
async def test_a_killed_sender_s_slice_is_sent_once_by_its_successor(world: World, worker: Worker, after: bool) -> None:  # noqa: FBT001 - a parameter
    await overage(world, 60)
    await worker.sealer.seal("org_1")
    sending = asyncio.create_task(worker.sender.send("org_1", at_once=True))
    world.sandbox.faults.crash(1, after=after, task=lambda: sending)
    with pytest.raises(asyncio.CancelledError):
        await sending
    world.sandbox.faults.clear()
    assert await reports(world) == [("runs", 60, "sealed")]
    # Until the lease expires, no other process sends for the account.
    successor = worker_of(world)
    assert await successor.sender.send("org_1", at_once=True) is None
    world.billing.clock.advance(leases.LEASE + timedelta(seconds=1))
    await successor.work()
    assert await reports(world) == [("runs", 60, "sent")]
    assert await on_the_meter(world) == 60


@pytest.mark.parametrize("status", [429, 500, 503, 409])
async def test_a_storm_of_refusals_loses_nothing(world: World, worker: Worker, status: int) -> None:
    await overage(world, 60)
    asked = 0

    async def storm(_method: str, path: str) -> int | None:
        nonlocal asked
        asked += path == EVENTS
        return status if path == EVENTS else None

    world.sandbox.faults.before = storm
    for _ in range(20):
        await worker.work()
        await worker.advance(timedelta(minutes=2))
    # It backs off: at most two attempts in each round, and the SDK makes each up to three times.
    assert 0 < asked <= 20 * 3 * 2
    assert await on_the_meter(world) == 0
    world.sandbox.faults.clear()
    await worker.catch_up()
    assert await reports(world) == [("runs", 60, "sent")]
    assert await on_the_meter(world) == 60


async def test_accepted_but_unheard_is_not_counted_again(world: World, worker: Worker) -> None:
    await overage(world, 60)

    async def unheard(_method: str, path: str) -> int | None:
        return 503 if path == EVENTS else None

    world.sandbox.faults.after = unheard
    await worker.advance(timedelta(minutes=20))
    assert (await reports(world))[0] == ("runs", 60, "sealed")
    # New usage waits behind it, in a report that grows.
    await record(world, "runs", 5, "second")
    await worker.advance(timedelta(minutes=5))
    await record(world, "runs", 5, "third")
    await worker.advance(timedelta(minutes=5))
    assert await reports(world) == [("runs", 60, "sealed"), ("runs", 10, "sealed")]
    world.sandbox.faults.clear()
    await worker.catch_up()
    assert await reports(world) == [("runs", 60, "sent"), ("runs", 10, "sent")]
    assert await on_the_meter(world) == 70


@pytest.mark.parametrize("arrived", [False, True])
async def test_of_what_is_unknown_for_a_day_the_meter_s_sum_decides(
    world: World,
    worker: Worker,
    arrived: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Stripe has forgotten the identifier by then; sending the event again would count it twice."""
    await overage(world, 60)

    async def fault(_method: str, path: str) -> int | None:
        return 503 if path == EVENTS else None

    faults = world.sandbox.faults
    faults.before, faults.after = (faults.before, fault) if arrived else (fault, faults.after)
    await worker.catch_up()
    identifiers = {row.identifier for row in await world.rows(tables.usage_reports)}
    await worker.advance(timedelta(hours=25), timedelta(hours=1))
    assert await reports(world) == ([("runs", 60, "sent")] if arrived else [("runs", 60, "sealed")])
    faults.clear()
    await worker.advance(timedelta(hours=2))
    assert await reports(world) == [("runs", 60, "sent")]
    assert await on_the_meter(world) == 60
    assert ({row.identifier for row in await world.rows(tables.usage_reports)} == identifiers) is arrived


async def test_workers_that_meet_send_one_at_a_time(world: World, worker: Worker) -> None:
    await overage(world, 0)
    under_way = most = 0

    async def begins(_method: str, path: str) -> int | None:
        nonlocal under_way, most
        if path == EVENTS:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
        return None

    async def ends(_method: str, path: str) -> int | None:
        nonlocal under_way
        under_way -= path == EVENTS
        return None

    world.sandbox.faults.before, world.sandbox.faults.after = begins, ends
    workers = [worker, worker_of(world), worker_of(world)]
    for n in range(8):
        await record(world, "runs", 7, f"more_{n}")
        for _ in range(2):
            await world.advance(timedelta(minutes=6))
            await asyncio.gather(*(one.work() for one in workers))
    assert {state for _, _, state in await reports(world)} == {"sent"}
    assert await on_the_meter(world) == 56
    assert most == 1


async def test_a_sender_that_was_overtaken_marks_nothing(world: World, worker: Worker) -> None:
    """It continues after a long pause with its call made; the next sender has found the event at Stripe already."""
    await overage(world, 60)
    await worker.sealer.seal("org_1")
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_method: str, path: str) -> int | None:
        if path == EVENTS and not paused.is_set():
            paused.set()
            await go_on.wait()
        return None

    world.sandbox.faults.after = pause
    first = asyncio.create_task(worker.sender.send("org_1", at_once=True))
    await paused.wait()
    world.billing.clock.advance(leases.LEASE + timedelta(seconds=1))
    assert await worker_of(world).sender.send("org_1", at_once=True) is not None
    go_on.set()
    assert await first is None
    assert await reports(world) == [("runs", 60, "sent")]
    assert await on_the_meter(world) == 60


async def test_a_correction_is_sent_as_a_negative_slice(world: World, worker: Worker) -> None:
    await overage(world, 60)
    await worker.catch_up()
    request = usage_pb2.CorrectUsageRequest(account_id="org_1", event_id="first", correction_id="void", quantity=20)
    await world.billing.usage.CorrectUsage(request)
    await worker.catch_up()
    assert await reports(world) == [("runs", 60, "sent"), ("runs", -20, "sent")]
    assert await on_the_meter(world) == 40
    assert await drifts(world) == []


async def test_what_was_never_sent_is_corrected_before_it_is(world: World, worker: Worker) -> None:
    await overage(world, 60)
    await worker.work()
    request = usage_pb2.CorrectUsageRequest(account_id="org_1", event_id="first", correction_id="void")
    await world.billing.usage.CorrectUsage(request)
    await worker.catch_up()
    assert await reports(world) == [("runs", 0, "void")]
    assert await world.sandbox.requests("POST", EVENTS) == []
    assert await drifts(world) == []


async def test_what_stripe_refuses_for_good_is_kept_shown_and_retried(world: World, worker: Worker) -> None:
    await overage(world, 60)

    async def refuse(_method: str, path: str) -> int | None:
        return 400 if path == EVENTS else None

    world.sandbox.faults.before = refuse
    await worker.catch_up()
    assert await reports(world) == [("runs", 60, "failed")]
    (drift,) = await drifts(world)
    assert (drift.kind, drift.ours) == (DiscrepancyKind.FAILED, 60)
    world.sandbox.faults.clear()
    now = world.billing.clock.now()
    await world.billing.transactions.run(lambda conn: retry_failed.retry_all(conn, "org_1", ORIGIN, now))
    await worker.work()
    assert await reports(world) == [("runs", 60, "sent")]
    assert await on_the_meter(world) == 60


async def test_units_whose_invoice_line_exceeds_stripe_s_eight_digits_are_not_sent(
    world: World, worker: Worker
) -> None:
    """At 0.50 a run: the first report fits, with the second the line would be 1,000,000.00."""
    await overage(world, 1_500_000)
    await worker.catch_up()
    await record(world, "runs", 500_000, "second")
    await worker.catch_up()

    assert await reports(world) == [("runs", 1_500_000, "sent"), ("runs", 500_000, "failed")]
    assert await on_the_meter(world) == 1_500_000
    (drift,) = await drifts(world)
    assert (drift.kind, drift.ours) == (DiscrepancyKind.FAILED, 500_000)
    assert "100000000 minor units" in drift.detail


async def test_an_error_report_of_stripe_s_opens_what_it_names(world: World, worker: Worker) -> None:
    """A 2xx does not mean that the event is counted: hours later Stripe may report that it was not."""
    await overage(world, 60)
    await worker.catch_up()
    (row,) = await world.rows(tables.usage_reports)
    event = {
        "type": "v1.billing.meter.error_report_triggered",
        "related_object": {"id": "mtr_1"},
        "data": {
            "developer_message_summary": "There is 1 invalid event",
            "reason": {
                "error_count": 1,
                "error_types": [
                    {
                        "code": "meter_event_customer_not_found",
                        "error_count": 1,
                        "sample_errors": [
                            {"error_message": "not found", "request": {"identifier": f"{row.identifier}:1"}}
                        ],
                    }
                ],
            },
        },
    }
    report, now = meter_errors.from_stripe(event), world.billing.clock.now()
    for expected in (["org_1"], []):
        assert (
            await world.billing.transactions.run(lambda conn: meter_errors.apply(conn, report, ORIGIN, now)) == expected
        )
    assert await reports(world) == [("runs", 60, "failed")]
    await world.billing.transactions.run(lambda conn: retry_failed.retry_all(conn, "org_1", ORIGIN, now))
    await worker.work()
    (again,) = await world.rows(tables.usage_reports)
    assert (again.state, again.identifier == row.identifier) == ("sent", False)


async def test_an_answer_that_comes_after_a_retry_marks_nothing(world: World, worker: Worker) -> None:
    """The answer belongs to the old identifier; it does not say whether the new identifier is at Stripe."""
    await overage(world, 60)
    await worker.sealer.seal("org_1")
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_method: str, path: str) -> int | None:
        if path == EVENTS and not paused.is_set():
            paused.set()
            await go_on.wait()
        return None

    world.sandbox.faults.after = pause
    sending = asyncio.create_task(worker.sender.send("org_1", at_once=True))
    await paused.wait()
    (row,) = await world.rows(tables.usage_reports)
    sample = meter_errors.Sample("meter_event_customer_not_found", "not found", row.identifier)
    report, now = meter_errors.MeterErrorReport("mtr_1", "", 1, (sample,)), world.billing.clock.now()
    await world.billing.transactions.run(lambda conn: meter_errors.apply(conn, report, ORIGIN, now))
    await world.billing.transactions.run(lambda conn: retry_failed.retry_all(conn, "org_1", ORIGIN, now))
    go_on.set()
    await sending
    assert await reports(world) == [("runs", 60, "sealed")]


async def test_a_retry_of_what_may_be_at_stripe_looks_again(world: World, worker: Worker) -> None:
    """The meter's total matches neither sum. A person has to find out why; until then no new identifier is used."""
    await overage(world, 60)

    async def unheard(_method: str, path: str) -> int | None:
        return 503 if path == EVENTS else None

    world.sandbox.faults.after = unheard
    await worker.catch_up()
    (row,) = await world.rows(tables.usage_reports)
    event = {
        "event_name": row.stripe_event_name,
        "timestamp": int(row.reported_for.timestamp()),
        "payload[stripe_customer_id]": row.customer_id,
    }
    world.sandbox.faults.clear()
    await world.sandbox.call("POST", EVENTS, **event, identifier="by_hand", **{"payload[value]": 7})
    world.sandbox.faults.after = unheard
    await worker.advance(timedelta(hours=25), timedelta(hours=1))
    assert await reports(world) == [("runs", 60, "failed")]
    world.sandbox.faults.clear()
    await world.sandbox.call("POST", EVENTS, **event, identifier="taken_back", **{"payload[value]": -7})
    now = world.billing.clock.now()
    await world.billing.transactions.run(lambda conn: retry_failed.retry_all(conn, "org_1", ORIGIN, now))
    await worker.work()
    (again,) = await world.rows(tables.usage_reports)
    assert (again.state, again.identifier) == ("sent", row.identifier)
    assert await on_the_meter(world) == 60


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": []}, {"data": {"reason": [1]}}, []])
def test_what_is_no_error_report_is_refused(data: Any) -> None:  # noqa: ANN401 - hostile
    with pytest.raises(errors.StripeObjectUnreadable, match=r"^event without an id"):
        meter_errors.from_stripe(data)


async def test_a_flush_brings_everything_to_stripe_at_once(world: World) -> None:
    await overage(world, 60)
    await flush_of(world).flush("org_1")
    assert await reports(world) == [("runs", 60, "sent")]
    await flush_of(world).flush("org_1")
    assert await on_the_meter(world) == 60


async def test_a_flush_says_when_stripe_is_away(world: World, worker: Worker) -> None:
    await overage(world, 60)

    async def away(_method: str, _path: str) -> int | None:
        return 503

    world.sandbox.faults.before = away
    with pytest.raises(errors.UsageNotReported) as caught:
        await flush_of(world).flush("org_1")
    assert (caught.value.code, caught.value.metadata) == (grpc.StatusCode.UNAVAILABLE, {"account_id": "org_1"})
    world.sandbox.faults.clear()
    await flush_of(world).flush("org_1")
    assert await on_the_meter(world) == 60
    assert await worker.sender.send_due() == 0


async def test_a_meter_that_lost_units_is_shown_and_mended(world: World, worker: Worker) -> None:
    await overage(world, 60)
    await worker.catch_up()
    # As if Stripe had lost it without an error report: its timestamp is moved to a minute that the meter has no event
    # of.
    stamped = tables.usage_reports.c.reported_for + timedelta(minutes=5)
    await world.execute(sa.update(tables.usage_reports).values(reported_for=stamped))
    await worker.advance(timedelta(minutes=20))
    (drift,) = await drifts(world)
    assert (drift.kind, drift.ours, drift.theirs) == (DiscrepancyKind.METER, 60, 0)
    billing = world.billing
    reconciliation = usage.UsageReconciliation(
        billing.transactions, versions.CatalogCache(), world.stripe, billing.clock
    )
    assert await reconciliation.fix([drift], ORIGIN) == []


async def test_what_a_meter_lost_failed_when_that_was_found(world: World, worker: Worker) -> None:
    """Stripe becomes unreachable while the next account is repaired, so the lost report is not retried."""
    await overage(world, 60)
    await worker.catch_up()
    stamped = tables.usage_reports.c.reported_for - timedelta(minutes=5)
    await world.execute(sa.update(tables.usage_reports).values(reported_for=stamped))
    await worker.advance(timedelta(minutes=20))
    (drift,) = await drifts(world)
    summed = False

    async def away(_method: str, path: str) -> int | None:
        nonlocal summed
        summed = summed or path.endswith("event_summaries")
        return 503 if summed and path == "/v1/billing/meters" else None

    world.sandbox.faults.before = away
    billing = world.billing
    reconciliation = usage.UsageReconciliation(
        billing.transactions, versions.CatalogCache(), world.stripe, billing.clock
    )
    since = billing.clock.now()
    with pytest.raises(errors.StripeUnavailable):
        await reconciliation.fix([drift, replace(drift, account_id="org_2")], ORIGIN)
    (row,) = await world.rows(tables.usage_reports)
    assert (row.state, row.closed_at >= since) == ("failed", True)


def flush_of(world: World) -> export_now.ExportNow:
    billing = world.billing
    return export_now.ExportNow(billing.transactions, versions.CatalogCache(), world.stripe, billing.clock)
