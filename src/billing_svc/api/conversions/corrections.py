"""Converts corrections to and from their messages."""

from billing.v1 import invoice_pb2, usage_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import invoices
from billing_svc.metering.corrections import rules

NOTE_LENGTH_MAX = 500


def from_proto_correction(request: usage_pb2.CorrectUsageRequest, caller: str, request_id: str) -> rules.Correction:
    """Return the requested correction. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("correction_id", request.correction_id)
    check.identifier("event_id", request.event_id)
    has_quantity = request.HasField("quantity")
    if has_quantity:
        check.quantity("quantity", request.quantity)
    check.text("note", request.note, NOTE_LENGTH_MAX)
    check.done()
    return rules.Correction(
        account_id=request.account_id,
        correction_id=request.correction_id,
        event_id=request.event_id,
        quantity=request.quantity if has_quantity else None,
        note=request.note,
        caller=caller,
        request_id=request_id,
        even_if_credited=request.even_if_credited,
    )


def to_proto_corrected(corrected: rules.Corrected) -> usage_pb2.CorrectUsageResponse:
    """Return the correction's result."""
    return usage_pb2.CorrectUsageResponse(
        duplicate=corrected.duplicate,
        meter=corrected.meter,
        quantity=corrected.units,
        billable_quantity=corrected.billable,
        left=corrected.left,
        used=corrected.used,
        billable=corrected.total_billable,
        period_start=fields.to_proto_instant(corrected.period_start),
        period_end=fields.to_proto_instant(corrected.period_end),
        already_credited=[_to_proto_credit(credit) for credit in corrected.credits],
        not_credited_quantity=corrected.not_credited,
    )


def _to_proto_credit(credit: rules.Credit) -> invoice_pb2.InvoiceCredit:
    return invoice_pb2.InvoiceCredit(
        invoice_id=credit.invoice_id,
        amount_refunded=invoices.to_proto_amount(credit.amount_refunded, credit.currency),
        amount_credited=invoices.to_proto_amount(credit.amount_credited, credit.currency),
        dispute=invoices.to_proto_dispute(credit.dispute_status),
    )
