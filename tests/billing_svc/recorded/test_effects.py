"""The effects of single kinds of events: deletions, long invoices, customers, meters' error reports."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import invoice_pb2, subscription_pb2
from billing_svc.platform.database import tables
from billing_svc.subscriptions.invoices import fetch_invoices
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

ERROR_REPORT = "v1.billing.meter.error_report_triggered"


async def invoices_of(door: Door, **more: Any) -> list[invoice_pb2.Invoice]:  # noqa: ANN401 - the message's fields
    request = subscription_pb2.ListInvoicesRequest(account_id="org_1", **more)
    return list((await door.billing.subscriptions.ListInvoices(request)).invoices)


async def audits(door: Door) -> list[tuple[str, str, str]]:
    rows = await door.rows(tables.audit_log)
    return [(row.account_id, row.action, row.actor) for row in sorted(rows, key=lambda row: row.at)]


class TestInvoices:
    async def test_a_failed_payment_and_its_success_are_told(self, door: Door) -> None:
        retry_at = shapes.START + 3 * 86_400
        changes: dict[str, Any] = {"status": "open", "amount_paid": 0, "status_transitions": None}
        door.stripe.put(shapes.invoice(**changes, attempt_count=1, next_payment_attempt=retry_at))
        await door.deliver(shapes.event("invoice.payment_failed", shapes.invoice(), event_id="evt_1"))
        await door.apply_all()
        (shown,) = await invoices_of(door)
        assert (shown.status, shown.attempt_count) == (invoice_pb2.INVOICE_STATUS_OPEN, 1)
        assert (shown.amount_due.amount, shown.amount_paid.amount) == ("50.00", "0.00")
        assert shown.next_payment_attempt_at.seconds == retry_at
        assert not shown.HasField("paid_at")
        door.stripe.put(shapes.invoice(attempt_count=2))
        await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_2"))
        await door.apply_all()
        (shown,) = await invoices_of(door)
        assert (shown.status, shown.attempt_count) == (invoice_pb2.INVOICE_STATUS_PAID, 2)
        assert await audits(door) == [
            ("org_1", "invoice.applied", "stripe:evt_1"),
            ("org_1", "invoice.applied", "stripe:evt_2"),
        ]

    async def test_all_lines_are_read_and_the_first_hundred_shown(self, door: Door) -> None:
        lines = [shapes.line(number, shapes.PRICE, 1, 1) for number in range(250)]
        first = {"object": "list", "data": lines[:10], "has_more": True}
        door.stripe.put(shapes.invoice(lines=[]) | {"lines": first})
        door.stripe.objects["/v1/invoices/in_ours/lines"] = lines
        await door.deliver(shapes.event("invoice.finalized", shapes.invoice()))
        await door.apply_all()
        (row,) = await door.rows(tables.invoices)
        assert (len(row.lines), row.more_lines) == (250, False)
        (shown,) = await invoices_of(door)
        assert (len(shown.lines), shown.more_lines) == (100, True)

    async def test_lines_without_end_are_cut_off(self, door: Door) -> None:
        lines = [shapes.line(number, shapes.PRICE, 1, 1) for number in range(fetch_invoices.LINES_MAX * 2)]
        door.stripe.put(shapes.invoice(lines=[]) | {"lines": {"data": lines[:10], "has_more": True}})
        door.stripe.objects["/v1/invoices/in_ours/lines"] = lines
        await door.deliver(shapes.event("invoice.finalized", shapes.invoice()))
        await door.apply_all()
        (row,) = await door.rows(tables.invoices)
        assert (len(row.lines), row.more_lines) == (fetch_invoices.LINES_MAX, True)
        assert len(door.stripe.reads) <= 7

    async def test_a_deleted_draft_goes_and_takes_its_failed_events_along(self, door: Door) -> None:
        draft = shapes.invoice(status="draft", number=None)
        door.stripe.put(draft)
        await door.deliver(shapes.event("invoice.created", draft, event_id="evt_1"))
        await door.apply_all()
        assert len(await invoices_of(door)) == 1
        door.stripe.objects.clear()
        await door.deliver(shapes.event("invoice.updated", draft, event_id="evt_2"))
        await door.apply_all()
        assert (await door.states())["evt_2"] == ("failed", "Stripe has no invoice in_ours")
        assert len(await invoices_of(door)) == 1
        await door.deliver(shapes.event("invoice.deleted", draft, event_id="evt_3"))
        await door.apply_all()
        assert set((await door.states()).values()) == {("applied", None)}
        assert await invoices_of(door) == []
        assert (await audits(door))[-1][1] == "invoice.removed"

    async def test_a_draft_that_was_never_seen_is_deleted_without_a_trace(self, door: Door) -> None:
        await door.deliver(shapes.event("invoice.deleted", shapes.invoice(), event_id="evt_1"))
        await door.apply_all()
        assert await door.states() == {"evt_1": ("applied", None)}
        assert await audits(door) == []

    async def test_what_is_applied_again_changes_nothing(self, door: Door) -> None:
        door.stripe.put(shapes.invoice())
        for number in range(3):
            await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id=f"evt_{number}"))
            await door.apply_all()
        assert len(await audits(door)) == 1

    @pytest.mark.parametrize(
        ("currency", "shown"), [("usd", "50.00"), ("jpy", "5000"), ("kwd", "5.000"), ("xaf", "5000"), ("zzz", "50.00")]
    )
    async def test_amounts_are_in_the_currency_s_own_units(self, door: Door, currency: str, shown: str) -> None:
        door.stripe.put(shapes.invoice(currency=currency))
        await door.deliver(shapes.event("invoice.paid", shapes.invoice()))
        await door.apply_all()
        (invoice,) = await invoices_of(door)
        assert (invoice.total.amount, invoice.total.currency) == (shown, currency)


class TestCustomers:
    async def test_a_deleted_customer_is_unlinked_and_its_subscriptions_end(self, door: Door) -> None:
        door.stripe.put(shapes.subscription())
        await door.deliver(shapes.event("customer.subscription.created", shapes.subscription(), event_id="evt_1"))
        await door.apply_all()
        await self._open_page(door)
        door.stripe.put(shapes.subscription(status="canceled", ended_at=shapes.START + 3600))
        customer = {"id": shapes.CUSTOMER, "object": "customer", "email": "a@example.com"}
        await door.deliver(shapes.event("customer.deleted", customer, event_id="evt_2"))
        await door.apply_all()
        assert (await door.states())["evt_2"] == ("applied", None)
        (account,) = await door.rows(tables.accounts)
        assert account.customer_id is None
        (link,) = await door.rows(tables.stripe_customers)
        assert (link.account_id, link.deleted_at is None) == ("org_1", False)
        (page,) = await door.rows(tables.checkouts)
        assert page.state == "expired"
        told = await door.billing.subscriptions.GetSubscription(
            subscription_pb2.GetSubscriptionRequest(account_id="org_1")
        )
        assert told.subscription.plan == "free"
        # The account of its last events is still known.
        await door.deliver(
            shapes.event("customer.subscription.deleted", shapes.subscription(), event_id="evt_3"),
            shapes.event("customer.deleted", customer, event_id="evt_4"),
        )
        await door.apply_all()
        assert {state for state, _ in (await door.states()).values()} == {"applied"}
        assert [one for one in await audits(door) if one[1] == "customer.unlinked"] == [
            ("org_1", "customer.unlinked", "stripe:evt_2")
        ]

    async def test_a_late_deletion_leaves_the_customer_that_followed(self, door: Door) -> None:
        async with door.billing.engine.begin() as conn:
            await conn.execute(sa.update(tables.accounts).values(customer_id="cus_next"))
        await self._open_page(door)
        await door.deliver(shapes.event("customer.deleted", {"id": shapes.CUSTOMER}, event_id="evt_1"))
        await door.apply_all()
        (account,) = await door.rows(tables.accounts)
        assert account.customer_id == "cus_next"
        (page,) = await door.rows(tables.checkouts)
        assert page.state == "open"

    async def test_an_updated_customer_costs_no_read(self, door: Door) -> None:
        await door.deliver(shapes.event("customer.updated", {"id": shapes.CUSTOMER, "email": None}, event_id="evt_1"))
        await door.apply_all()
        assert await door.states() == {"evt_1": ("applied", None)}
        assert (door.stripe.reads, await audits(door)) == ([], [])

    @staticmethod
    async def _open_page(door: Door) -> None:
        now = door.billing.clock.now()
        page = {"checkout_id": "c1", "plan": "pro", "price": "monthly", "quantity": 1, "catalog_version": 1}
        urls = {"success_url": "https://a.example", "cancel_url": "https://a.example", "url": "https://b.example"}
        async with door.billing.engine.begin() as conn:
            await conn.execute(
                sa.insert(tables.checkouts).values(
                    account_id="org_1", state="open", session_id="cs_1", created_at=now, **page, **urls
                )
            )


class TestMeterErrors:
    async def test_thin_events_are_taken_in_and_fetched_whole(self, door: Door) -> None:
        related = {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"}
        sample = {"error_message": "no such customer", "request": {"identifier": "none of ours"}}
        kinds = [{"code": "meter_event_customer_not_found", "error_count": 1, "sample_errors": [sample]}]
        data = {
            "developer_message_summary": "There is 1 invalid event",
            "reason": {"error_count": 1, "error_types": kinds},
            "validation_start": "2026-11-20T11:00:00.000Z",
            "validation_end": "2026-11-20T12:00:00.000Z",
        }
        for number, type_ in enumerate((ERROR_REPORT, "v1.billing.meter.no_meter_found")):
            thin = shapes.thin_event(type_, f"evt_test_{number}", related if type_ == ERROR_REPORT else None)
            await door.deliver(thin)
            door.stripe.objects[f"/v2/core/events/evt_test_{number}"] = {**thin, "data": data}
        await door.apply_all()
        assert set((await door.states()).values()) == {("applied", None)}
        rows = await door.rows(tables.stripe_events)
        assert {row.created_at for row in rows} == {datetime(2026, 11, 20, 12, 0, 0, 250_000, UTC)}
        assert sorted(door.stripe.reads) == [f"/v2/core/events/evt_test_{number}" for number in (0, 1)]

    async def test_the_audit_names_the_event_that_a_failed_report_came_from(self, door: Door) -> None:
        now = datetime.now(UTC)
        slice_ = {"meter": "runs", "period_start": now, "slice": 1, "from_units": 0, "to_units": 5, "plan": "pro"}
        at_stripe = {"customer_id": "cus_ours", "stripe_event_name": "runs", "identifier": "ours", "state": "sent"}
        times = {"reported_for": now, "period_end": now, "next_attempt_at": now, "sealed_at": now, "closed_at": now}
        async with door.billing.engine.begin() as connection:
            await connection.execute(
                sa.insert(tables.usage_reports).values(
                    account_id="org_1", report_id="r1", catalog_version=1, **slice_, **at_stripe, **times
                )
            )
        sample = {"error_message": "lost", "request": {"identifier": "ours:1"}}
        kinds = [{"code": "no_meter", "error_count": 1, "sample_errors": [sample]}]
        thin = shapes.thin_event(ERROR_REPORT, "evt_1")
        await door.deliver(thin)
        data = {"reason": {"error_count": 1, "error_types": kinds}}
        door.stripe.objects["/v2/core/events/evt_1"] = {**thin, "data": data}
        await door.apply_all()
        assert await audits(door) == [("org_1", "usage.report_failed", "stripe:evt_1")]

    async def test_an_event_that_stripe_forgot_fails(self, door: Door) -> None:
        await door.deliver(shapes.thin_event(ERROR_REPORT, "evt_old"))
        await door.apply_all()
        assert await door.states() == {"evt_old": ("failed", "Stripe has no event evt_old any more")}

    async def test_an_event_without_its_data_fails(self, door: Door) -> None:
        await door.deliver(shapes.thin_event(ERROR_REPORT, "evt_1"))
        door.stripe.objects["/v2/core/events/evt_1"] = shapes.thin_event(ERROR_REPORT, "evt_1")
        await door.apply_all()
        ((state, note),) = (await door.states()).values()
        assert (state, bool(note)) == ("failed", True)


async def test_a_page_that_was_left_is_closed_once_under_audit(door: Door) -> None:
    now = datetime.now(UTC)
    page = {"plan": "pro", "price": "monthly", "quantity": 1, "success_url": "", "cancel_url": "", "catalog_version": 1}
    async with door.billing.engine.begin() as connection:
        await connection.execute(
            sa.insert(tables.checkouts).values(
                account_id="org_1", checkout_id="co_1", state="opening", created_at=now, **page
            )
        )
    session = {"id": "cs_1", "object": "checkout.session", "customer": "cus_ours"}
    session["metadata"] = {"account_id": "org_1", "checkout_id": "co_1"}  # type: ignore[assignment]
    for number in (1, 2):
        await door.deliver(shapes.event("checkout.session.expired", session, event_id=f"evt_{number}"))
        await door.apply_all()
    assert [row.state for row in await door.rows(tables.checkouts)] == ["expired"]
    assert await audits(door) == [("org_1", "checkout.closed", "stripe:evt_1")]
