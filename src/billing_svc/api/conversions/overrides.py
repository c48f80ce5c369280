"""Converts requests about overrides to the types of `metering`."""

from billing.v1 import admin_pb2
from billing_svc.api import fields
from billing_svc.metering.overrides import rules

NOTE_LENGTH_MAX = 500


def from_proto_set(request: admin_pb2.SetOverrideRequest, caller: str) -> rules.OverrideSetting:
    """Return the override to set. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.name("meter", request.meter)
    has_included = request.HasField("included")
    if has_included:
        check.quantity("included", request.included, least=0)
    if has_included == request.unlimited:
        check.refuse("included", "give exactly one of included and unlimited=true")
    expires_at = check.instant("expires_at", request.expires_at) if request.HasField("expires_at") else None
    if not request.note.strip():
        check.refuse("note", "is required: it is written to the audit log")
    check.text("note", request.note, NOTE_LENGTH_MAX)
    check.identifier("request_id", request.request_id)
    check.done()
    return rules.OverrideSetting(
        account_id=request.account_id,
        meter=request.meter,
        included=request.included if has_included else None,
        expires_at=expires_at,
        note=request.note,
        caller=caller,
        request_id=request.request_id,
    )


def from_proto_remove(request: admin_pb2.RemoveOverrideRequest, caller: str) -> rules.OverrideRemoval:
    """Return the override to remove. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.name("meter", request.meter)
    check.identifier("request_id", request.request_id)
    check.done()
    return rules.OverrideRemoval(request.account_id, request.meter, caller, request.request_id)
