"""Converts usage reports to and from their messages."""

from collections.abc import Mapping, Sequence

from billing.v1 import admin_pb2
from billing_svc.api import fields, paging
from billing_svc.reconciliation import write_off
from billing_svc.usage_export import report_lists, rules, write_off_rules
from billing_svc.usage_export.states import ReportState

NOTE_LENGTH_MAX = 500
REPORT_ID_LENGTH_MAX = 64

_STATES: "Mapping[ReportState, admin_pb2.UsageReportState.ValueType]" = {
    ReportState.SEALED: admin_pb2.USAGE_REPORT_STATE_SEALED,
    ReportState.SENT: admin_pb2.USAGE_REPORT_STATE_SENT,
    ReportState.LATE: admin_pb2.USAGE_REPORT_STATE_LATE,
    ReportState.ITEMISED: admin_pb2.USAGE_REPORT_STATE_ITEMISED,
    ReportState.INVOICED: admin_pb2.USAGE_REPORT_STATE_INVOICED,
    ReportState.VOID: admin_pb2.USAGE_REPORT_STATE_VOID,
    ReportState.FAILED: admin_pb2.USAGE_REPORT_STATE_FAILED,
    ReportState.WRITTEN_OFF: admin_pb2.USAGE_REPORT_STATE_WRITTEN_OFF,
    ReportState.PAID_BACK: admin_pb2.USAGE_REPORT_STATE_PAID_BACK,
}
_FILTERS = {state: word for word, state in _STATES.items()}


def from_proto_list(request: admin_pb2.ListUsageReportsRequest) -> tuple[report_lists.ReportFilter, paging.Page]:
    """Return which reports are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    check.account_id(request.account_id)
    state = _FILTERS.get(request.state)
    if state is None and request.state != admin_pb2.USAGE_REPORT_STATE_UNSPECIFIED:
        check.refuse("state", f"is {request.state}, which is not a value of UsageReportState")
    choice = report_lists.ReportFilter(request.account_id, state)
    return choice, paging.from_proto(request, check, ("usage reports", choice), paging.instant, str)


def to_proto_list(rows: Sequence[report_lists.ListedReport], page: paging.Page) -> admin_pb2.ListUsageReportsResponse:
    """Return a page; `rows` has one element more than the page if there is a next page."""
    shown, token = page.cut(rows, lambda row: (row.report.sealed_at.isoformat(), row.report.report_id))
    return admin_pb2.ListUsageReportsResponse(
        reports=[to_proto_report(row.report, row.item_write) for row in shown], next_page_token=token
    )


def from_proto_write_off(request: admin_pb2.WriteOffUsageReportRequest) -> write_off.WriteOff:
    """Return the requested write-off. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("report_id", request.report_id, REPORT_ID_LENGTH_MAX)
    if not request.note.strip():
        check.refuse("note", "is required: it is written to the audit log")
    check.text("note", request.note, NOTE_LENGTH_MAX)
    check.identifier("request_id", request.request_id)
    check.done()
    return write_off.WriteOff(request.account_id, request.report_id, request.note)


def to_proto_report(report: rules.UsageReport, item_write: write_off_rules.ItemWrite) -> admin_pb2.UsageReport:
    """Return a report; `item_write` is the state of the write that creates its invoice item."""
    return admin_pb2.UsageReport(
        report_id=report.report_id,
        meter=report.meter,
        period_start=fields.to_proto_instant(report.period_start),
        units=report.units,
        plan=report.plan,
        state=_STATES[report.state],
        subscription_id=report.subscription_id or "",
        invoice_item_id=report.invoice_item_id or "",
        note=report.error or "",
        sealed_at=fields.to_proto_instant(report.sealed_at),
        not_writable_off=write_off_rules.judge(report, item_write).refusal,
    )
