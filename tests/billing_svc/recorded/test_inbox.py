"""The inbox as operators see it: events listed, replayed, and later stored without bodies."""

import asyncio
import json
from datetime import timedelta

import sqlalchemy as sa

from billing.v1 import admin_pb2, stripe_event_pb2
from billing_svc.api import fields
from billing_svc.inbox import replay_events, store
from billing_svc.platform.database import tables
from tests.billing_svc import refusals
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

FAILED = stripe_event_pb2.STRIPE_EVENT_STATE_FAILED
PENDING = stripe_event_pb2.STRIPE_EVENT_STATE_PENDING
IGNORED = stripe_event_pb2.STRIPE_EVENT_STATE_IGNORED
APPLIED = stripe_event_pb2.STRIPE_EVENT_STATE_APPLIED

Listed = admin_pb2.ListStripeEventsRequest
Replay = admin_pb2.ReplayStripeEventsRequest


async def fill(door: Door) -> None:
    """Three events of a missing invoice (failed), one of an existing invoice (applied), one ignored, one waiting."""
    door.stripe.put(shapes.invoice("in_good"))
    events = [
        ("invoice.paid", "in_1"),
        ("invoice.paid", "in_2"),
        ("invoice.voided", "in_3"),
        ("invoice.paid", "in_good"),
    ]
    for number, (type_, invoice_id) in enumerate(events):
        await door.deliver(shapes.event(type_, shapes.invoice(invoice_id), event_id=f"evt_{number}"))
    await door.deliver(shapes.event("payout.paid", {"id": "po_1"}, event_id="evt_4"))
    await door.apply_all()
    await door.deliver(shapes.event("invoice.paid", shapes.invoice("in_5"), event_id="evt_5"))


async def listed(door: Door, **more: object) -> list[str]:
    answer = await door.billing.admin.ListStripeEvents(Listed(**more))  # type: ignore[arg-type]  # the message's fields
    return sorted(event.event_id for event in answer.events)


async def test_events_are_listed_newest_first_page_by_page(door: Door) -> None:
    await fill(door)
    seen, token = [], ""
    while True:
        page = await door.billing.admin.ListStripeEvents(Listed(page_size=2, page_token=token))
        seen += [event.event_id for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"evt_{number}" for number in range(5, -1, -1)]
    page = await door.billing.admin.ListStripeEvents(Listed(page_size=2))
    other = Listed(page_size=2, page_token=page.next_page_token, state=FAILED)
    assert (await refusals.refused(door.billing.admin.ListStripeEvents(other))).reason == "INVALID_PAGE_TOKEN"


async def test_the_inbox_s_list_is_narrowed_by_its_filters(door: Door) -> None:
    await fill(door)
    assert await listed(door, state=FAILED) == ["evt_0", "evt_1", "evt_2"]
    assert await listed(door, state=PENDING) == ["evt_5"]
    assert await listed(door, state=IGNORED) == ["evt_4"]
    assert await listed(door, state=APPLIED) == ["evt_3"]
    assert await listed(door, type="invoice.voided") == ["evt_2"]
    assert await listed(door, object_id="in_2") == ["evt_1"]
    assert await listed(door, account_id="org_1") == ["evt_3"]
    rows = sorted(await door.rows(tables.stripe_events), key=lambda row: row.received_at)
    since, before = (fields.to_proto_instant(rows[number].received_at) for number in (1, 3))
    assert await listed(door, received_from=since, received_before=before) == ["evt_1", "evt_2"]


async def test_an_event_tells_where_it_stands(door: Door) -> None:
    await fill(door)
    by_id = {event.event_id: event for event in (await door.billing.admin.ListStripeEvents(Listed())).events}
    failed, applied, ignored, waiting = (by_id[f"evt_{number}"] for number in (0, 3, 4, 5))
    assert (failed.state, failed.error, failed.attempts) == (FAILED, "Stripe has no invoice in_1", 1)
    assert (applied.state, applied.error, applied.account_id) == (APPLIED, "", "org_1")
    assert (ignored.state, ignored.error) == (IGNORED, "this type changes nothing here")
    assert [one.HasField("applied_at") for one in (failed, applied, ignored, waiting)] == [False, True, True, False]
    assert [one.HasField("next_attempt_at") for one in (failed, applied, ignored, waiting)] == [False] * 3 + [True]
    assert (waiting.type, waiting.object_id, waiting.api_version) == ("invoice.paid", "in_5", shapes.NEWEST)
    assert waiting.created_at.seconds == shapes.START


async def test_what_failed_is_applied_after_a_replay(door: Door) -> None:
    await fill(door)
    door.stripe.put(shapes.invoice("in_1"))
    answer = await door.billing.admin.ReplayStripeEvents(Replay(state=FAILED, request_id="r1"))
    assert (answer.replayed, answer.more) == (3, False)
    await door.apply_all()
    states = await door.states()
    assert states["evt_0"] == ("applied", None)
    assert states["evt_1"][0] == "failed"
    (audit,) = await door.rows(tables.audit_log, tables.audit_log.c.action == replay_events.ACTION)
    assert (audit.actor, audit.request_id, audit.account_id) == ("caller:test", "r1", "")
    assert (audit.changes["replayed"], audit.changes["state"]) == (3, "failed")


async def test_a_replay_sent_twice_happens_once(door: Door) -> None:
    await fill(door)
    request = Replay(state=FAILED, request_id="r1")
    answers = await asyncio.gather(*(door.billing.admin.ReplayStripeEvents(request) for _ in range(5)))
    assert {(one.replayed, one.more) for one in answers} == {(3, False)}
    await door.apply_all()
    again = await door.billing.admin.ReplayStripeEvents(request)
    assert again.replayed == 3
    assert await listed(door, state=PENDING) == []
    other = Replay(type="invoice.paid", request_id="r1")
    assert (await refusals.refused(door.billing.admin.ReplayStripeEvents(other))).reason == "REQUEST_ID_REUSED"


async def test_replaying_what_was_applied_ends_in_the_same_state(door: Door) -> None:
    await fill(door)
    before = await door.rows(tables.invoices)
    await door.billing.admin.ReplayStripeEvents(Replay(event_ids=["evt_3", "evt_4", "evt_3"], request_id="r1"))
    assert await listed(door, state=PENDING) == ["evt_3", "evt_4", "evt_5"]
    await door.apply_all()
    states = await door.states()
    assert states["evt_3"] == ("applied", None)
    assert states["evt_4"] == ("ignored", "this type changes nothing here")
    assert await door.rows(tables.invoices) == before


async def test_a_preview_changes_nothing(door: Door) -> None:
    await fill(door)
    before = await door.rows(tables.stripe_events)
    answer = await door.billing.admin.ReplayStripeEvents(Replay(type="invoice.paid", preview=True))
    assert answer.replayed == 4
    assert await door.rows(tables.stripe_events) == before
    assert await door.rows(tables.audit_log, tables.audit_log.c.action == replay_events.ACTION) == []


async def test_replays_that_name_nothing_or_too_much_are_refused(door: Door) -> None:
    await fill(door)
    call = door.billing.admin.ReplayStripeEvents
    cases = {
        "event_ids": [Replay(request_id="r"), Replay(event_ids=["evt_1"], state=FAILED, request_id="r")],
        "event_ids[0]": [Replay(event_ids=["\n"], request_id="r")],
        "request_id": [Replay(state=FAILED)],
        "state": [Replay(state=99, type="a.b", request_id="r")],  # type: ignore[arg-type]  # no such state
        "type": [Replay(type="x" * 129, request_id="r")],
    }
    for field, requests in cases.items():
        for request in requests:
            assert (await refusals.refused(call(request))).fields == (field,)
    many = Replay(event_ids=[f"evt_{number}" for number in range(501)], request_id="r")
    assert (await refusals.refused(call(many))).fields == ("event_ids",)
    refusal = await refusals.refused(call(Replay(event_ids=["evt_0", "evt_none"], request_id="r")))
    assert (refusal.code.name, refusal.reason) == ("NOT_FOUND", "STRIPE_EVENT_NOT_FOUND")
    assert (await door.states())["evt_0"][0] == "failed"


async def test_a_call_takes_so_many_and_says_that_there_are_more(door: Door) -> None:
    now = door.billing.clock.now()
    body = json.dumps(shapes.event("payout.paid", {})).encode()
    values = {"type": "payout.paid", "livemode": False, "created_at": now, "body": body, "state": "ignored"}
    rows = [
        {"event_id": f"evt_{number:05}", "object_id": "po_1", "received_at": now + timedelta(seconds=number), **values}
        for number in range(replay_events.EVENTS_MAX + 1)
    ]
    async with door.billing.engine.begin() as conn:
        await conn.execute(sa.insert(tables.stripe_events).values(next_attempt_at=now, closed_at=now), rows)
    answer = await door.billing.admin.ReplayStripeEvents(Replay(state=IGNORED, request_id="r1"))
    assert (answer.replayed, answer.more) == (replay_events.EVENTS_MAX, True)
    answer = await door.billing.admin.ReplayStripeEvents(Replay(state=IGNORED, request_id="r2"))
    assert (answer.replayed, answer.more) == (1, False)


async def test_two_kinds_of_one_id_do_not_hold_each_other_up(door: Door) -> None:
    """Stripe's ids are unique; a forged event with another object's id must not keep the worker busy."""
    door.stripe.status = 429
    await door.deliver(shapes.event("invoice.paid", shapes.invoice("in_1"), event_id="evt_1"))
    session = {"id": "in_1", "customer": shapes.CUSTOMER}
    await door.deliver(shapes.event("checkout.session.expired", session, event_id="evt_2"))
    rounds = 0
    while await door.inbox.apply_due():
        rounds += 1
    assert rounds == 2
    states = await door.states()
    assert (states["evt_1"][0], states["evt_2"][0]) == ("waiting", "ignored")


async def test_a_number_that_we_do_not_read_is_no_obstacle(door: Door) -> None:
    """The SDK's own classes would refuse the whole answer."""
    line = shapes.line(0, shapes.PRICE, 1, 1)
    line["pricing"]["unit_amount_decimal"] = "a lot"
    door.stripe.put(shapes.invoice(lines=[line]))
    await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_1"))
    await door.apply_all()
    assert await door.states() == {"evt_1": ("applied", None)}


async def test_an_answer_that_is_no_object_fails(door: Door) -> None:
    door.stripe.objects["/v1/invoices/in_ours"] = "hello"
    await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_1"))
    await door.apply_all()
    assert await door.states() == {"evt_1": ("failed", "Stripe's answer is a text, not an object")}


class TestRetention:
    async def test_bodies_go_in_batches_once_their_time_is_over(self, door: Door) -> None:
        await fill(door)
        now = door.billing.clock.now()

        async def forget(before: object, most: int) -> int:
            return await door.billing.transactions.run(
                lambda conn: store.forget_bodies(conn, before, most)  # type: ignore[arg-type]  # an instant
            )

        assert await forget(now - timedelta(days=1), 10) == 0
        assert [await forget(now + timedelta(days=1), 1) for _ in range(3)] == [1, 1, 0]
        kept = {row.event_id: row.body is not None for row in await door.rows(tables.stripe_events)}
        # Waiting and failed events keep their bodies; no row is deleted.
        assert kept == {**dict.fromkeys(("evt_0", "evt_1", "evt_2", "evt_5"), True), "evt_3": False, "evt_4": False}

    async def test_an_event_without_its_body_still_counts_once_and_is_not_replayed(self, door: Door) -> None:
        await fill(door)
        later = door.billing.clock.now() + timedelta(days=1)
        await door.billing.transactions.run(lambda conn: store.forget_bodies(conn, later))
        event = shapes.event("invoice.paid", shapes.invoice("in_good"), event_id="evt_3")
        await door.deliver(event)
        assert (await door.states())["evt_3"] == ("applied", None)
        call = door.billing.admin.ReplayStripeEvents
        refusal = await refusals.refused(call(Replay(event_ids=["evt_3"], request_id="r1")))
        assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "STRIPE_EVENT_BODY_DELETED")
        assert (await call(Replay(type="invoice.paid", request_id="r1"))).replayed == 3
