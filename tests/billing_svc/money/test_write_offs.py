"""An operator forgives usage: it is never charged, no comparison reports it, and a correction takes it back first."""

import asyncio
import uuid
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest

from billing.v1 import admin_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.refusals import refused

RUN = Decimal("0.10")


async def unreported(ledger: Ledger, units: int) -> str:
    """Record units that the worker sees only after their invoice is final; returns their event."""
    event_id = uuid.uuid4().hex
    await ledger.world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=100 + units)
    )
    ends = (await ledger.told()).period_end.ToDatetime(tzinfo=UTC)
    await ledger.world.advance(ends - ledger.world.billing.clock.now() + timedelta(hours=3))
    await ledger.work()
    return event_id


async def listed(ledger: Ledger, **more: Any) -> list[admin_pb2.UsageReport]:  # noqa: ANN401 - the message's fields
    request = admin_pb2.ListUsageReportsRequest(account_id="org_1", **more)
    return list((await ledger.world.billing.admin.ListUsageReports(request)).reports)


async def forgive(
    ledger: Ledger, report_id: str, request_id: str = "", note: str = "goodwill"
) -> admin_pb2.UsageReport:
    request = admin_pb2.WriteOffUsageReportRequest(
        account_id="org_1", report_id=report_id, note=note, request_id=request_id or uuid.uuid4().hex
    )
    return (await ledger.world.billing.admin.WriteOffUsageReport(request)).report


async def correct(ledger: Ledger, event_id: str, units: int, **more: Any) -> usage_pb2.CorrectUsageResponse:  # noqa: ANN401 - as above
    request = usage_pb2.CorrectUsageRequest(
        account_id="org_1", event_id=event_id, correction_id=uuid.uuid4().hex, quantity=units, **more
    )
    return await ledger.world.billing.usage.CorrectUsage(request)


async def test_an_item_deleted_by_hand_is_written_off_and_then_nothing_differs(tiers: Ledger) -> None:
    await unreported(tiers, 7)
    (report,) = await listed(tiers)
    assert report.state == admin_pb2.USAGE_REPORT_STATE_INVOICED
    there = await refused(forgive(tiers, report.report_id))
    assert (there.code, there.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_WRITABLE_OFF")
    await tiers.world.sandbox.call("DELETE", f"/v1/invoiceitems/{report.invoice_item_id}")
    ((kind, detail),) = await tiers.differences()
    assert kind == "usage: item"
    assert f"usage write-off {report.report_id}" in detail
    written = await forgive(tiers, report.report_id, "r1")
    assert (written.state, written.note) == (admin_pb2.USAGE_REPORT_STATE_WRITTEN_OFF, "goodwill")
    assert await tiers.differences() == []
    assert await forgive(tiers, report.report_id, "r1") == written, "a repeat changes nothing"
    assert (await refused(forgive(tiers, report.report_id, "r1", "other"))).reason == "REQUEST_ID_REUSED"
    assert (await refused(forgive(tiers, report.report_id))).reason == "NOT_WRITABLE_OFF"
    assert await tiers.differences(fix=True) == []
    await tiers.advance(days=40)
    assert await tiers.charged_by_meters() == 0
    entries = await tiers.world.rows(tables.audit_log, tables.audit_log.c.action == "usage.written_off")
    assert [(one.changes["units"], one.changes["amount"], one.changes["note"]) for one in entries] == [
        (7, 70, "goodwill")
    ]


async def test_usage_of_a_customer_that_is_gone_is_written_off_by_the_command(tiers: Ledger, database_url: str) -> None:
    await tiers.use("runs", 107)
    (customer,) = await tiers.world.sandbox.all("/v1/customers")
    await tiers.world.sandbox.call("DELETE", f"/v1/customers/{customer['id']}")
    await tiers.world.deliver_new()
    await tiers.work()
    (report,) = await listed(tiers)
    assert (report.state, report.not_writable_off) == (admin_pb2.USAGE_REPORT_STATE_FAILED, "")
    assert [kind for kind, _ in await tiers.differences()] == ["usage: failed"]
    env = terminal.complete(database_url) | {
        "STRIPE_API_BASE": tiers.world.sandbox.url,
        "STRIPE_API_KEY": "sk_test_tests",
    }

    async def run(*arguments: str) -> tuple[int, str]:
        ended = await asyncio.to_thread(terminal.run, *arguments, env=env)
        return ended.returncode, ended.stdout + ended.stderr

    code, shown = await run("usage", "show", "org_1")
    assert (code, report.report_id in shown, "can be written off" in shown) == (0, True, True), shown
    code, shown = await run("usage", "write-off", "nothing", "--note", "gone")
    assert (code, "there is no usage report" in shown) == (1, True)
    code, shown = await run("usage", "write-off", report.report_id, "--note", "the customer is gone")
    assert (code, shown) == (0, "org_1: 7 units of runs are written off\n")
    assert await tiers.differences() == []
    code, shown = await run("usage", "write-off", report.report_id, "--note", "again")
    assert (code, "it is written off already" in shown) == (1, True)


async def test_what_may_be_at_stripe_is_not_written_off(tiers: Ledger) -> None:
    await tiers.use("runs", 107)
    await tiers.world.sandbox.fault("broken", method="POST", path="/v1/billing/meter_events", does_it=True, count=10)
    await tiers.work()
    (report,) = await listed(tiers)
    assert report.state == admin_pb2.USAGE_REPORT_STATE_SEALED
    assert "is not known" in report.not_writable_off
    assert "is not known" in (await refused(forgive(tiers, report.report_id))).message
    await tiers.world.sandbox.control("DELETE", "faults")
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 7 * RUN


async def test_what_an_invoice_charges_or_will_charge_is_not_written_off(tiers: Ledger) -> None:
    await tiers.use("runs", 107)
    await tiers.report()
    (report,) = await listed(tiers)
    assert report.state == admin_pb2.USAGE_REPORT_STATE_SENT
    assert "bills it" in (await refused(forgive(tiers, report.report_id))).message
    await tiers.over_the_period_end()
    assert "bills it" in (await refused(forgive(tiers, report.report_id))).message


@pytest.mark.parametrize("field", ["account_id", "report_id", "note", "request_id"])
async def test_a_write_off_names_everything(tiers: Ledger, field: str) -> None:
    request = admin_pb2.WriteOffUsageReportRequest(account_id="org_1", report_id="x", note="n", request_id="r")
    request.ClearField(field)  # type: ignore[arg-type]  # one of the four above
    told = await refused(tiers.world.billing.admin.WriteOffUsageReport(request))
    assert (told.reason, told.fields) == ("INVALID_REQUEST", (field,))
    assert (await refused(forgive(tiers, "unknown"))).reason == "USAGE_REPORT_NOT_FOUND"


async def test_reports_are_listed_in_pages(tiers: Ledger) -> None:
    event_id = await unreported(tiers, 7)
    await correct(tiers, event_id, 2)
    await tiers.work()
    first = await tiers.world.billing.admin.ListUsageReports(
        admin_pb2.ListUsageReportsRequest(account_id="org_1", page_size=1)
    )
    assert [one.units for one in first.reports] == [-2]
    rest = await listed(tiers, page_size=1, page_token=first.next_page_token)
    assert [one.units for one in rest] == [7]
    assert await listed(tiers, state=admin_pb2.USAGE_REPORT_STATE_FAILED) == []


async def test_a_correction_takes_back_what_was_written_off_and_credits_only_the_rest(tiers: Ledger) -> None:
    await tiers.use("runs", 110)
    await tiers.report()
    event_id = await unreported(tiers, -93)  # 7 runs more, beyond the included
    report = (await listed(tiers, state=admin_pb2.USAGE_REPORT_STATE_INVOICED))[0]
    await tiers.world.sandbox.call("DELETE", f"/v1/invoiceitems/{report.invoice_item_id}")
    await forgive(tiers, report.report_id)
    assert await tiers.charged_by_meters() == 10 * RUN
    await correct(tiers, event_id, 4)
    await tiers.work()
    assert await tiers.charged_by_meters() == 10 * RUN, "nothing was charged for them, so nothing is credited"
    await tiers.advance(days=1)
    await tiers.work()
    await correct(tiers, event_id, 3)
    (first,) = [row.event_id for row in await tiers.world.rows(tables.usage_events) if row.units == 110]
    await correct(tiers, first, 2)
    await tiers.work()
    assert await tiers.charged_by_meters() == 8 * RUN
    assert await tiers.differences() == []
