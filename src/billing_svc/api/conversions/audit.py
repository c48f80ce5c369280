"""Converts audit rows to their messages."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from billing.v1 import admin_pb2
from billing_svc.api import fields, paging
from billing_svc.platform.audit import store

ACTOR_LENGTH_MAX = 128
ACTION_LENGTH_MAX = 64

_SOURCES = {
    "caller": admin_pb2.AUDIT_SOURCE_RPC,
    "operator": admin_pb2.AUDIT_SOURCE_COMMAND,
    "stripe": admin_pb2.AUDIT_SOURCE_STRIPE_EVENT,
    store.SERVICE: admin_pb2.AUDIT_SOURCE_SERVICE,
}


def from_proto_list(request: admin_pb2.ListAuditEntriesRequest) -> tuple[store.AuditFilter, paging.Page]:
    """Return which entries are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    if request.account_id:
        check.account_id(request.account_id)
    if request.caller:
        check.identifier("caller", request.caller, ACTOR_LENGTH_MAX)
    if request.action:
        check.identifier("action", request.action, ACTION_LENGTH_MAX)
    since, before = None, None
    if request.HasField("happened_from"):
        since = check.instant("happened_from", request.happened_from)
    if request.HasField("happened_before"):
        before = check.instant("happened_before", request.happened_before)
    choice = store.AuditFilter(request.account_id, request.caller, request.action, since, before)
    scope = ("audit", request.account_id, request.caller, request.action, since, before)
    return choice, paging.from_proto(request, check, scope, paging.instant, str, str)


def to_proto_list(rows: Sequence[store.AuditEntry], page: paging.Page) -> admin_pb2.ListAuditEntriesResponse:
    """Return a page; `rows` has one element more than the page if there is a next page."""
    shown, token = page.cut(rows, lambda row: (row.at.isoformat(), row.account_id, row.entry_id))
    return admin_pb2.ListAuditEntriesResponse(entries=[to_proto_entry(row) for row in shown], next_page_token=token)


def to_proto_entries(rows: Sequence[store.AuditEntry]) -> admin_pb2.ListAuditEntriesResponse:
    """Return rows as a list without a next page."""
    return admin_pb2.ListAuditEntriesResponse(entries=[to_proto_entry(row) for row in rows])


def to_proto_entry(row: store.AuditEntry) -> admin_pb2.AuditEntry:
    """Return an entry's message. For a Stripe event, `request_id` is the event's id."""
    kind, _, name = row.actor.partition(":")
    is_stripe = kind == "stripe"
    return admin_pb2.AuditEntry(
        entry_id=row.entry_id,
        happened_at=fields.to_proto_instant(row.at),
        caller=name if name and not is_stripe else kind,
        source=_SOURCES.get(kind, admin_pb2.AUDIT_SOURCE_UNSPECIFIED),
        action=row.action,
        account_id=row.account_id,
        request_id=name if is_stripe else row.request_id,
        changes=list(_to_proto_changes(row.changes)),
    )


def _to_proto_changes(changes: Mapping[str, Any]) -> Iterator[admin_pb2.AuditChange]:
    """Yield each value that was set; if the row has the object before and after, yield each field of both."""
    before, after = changes.get("before") or {}, changes.get("after") or {}
    for field, value in changes.items():
        if field not in {"before", "after"}:
            yield admin_pb2.AuditChange(field=field, after=_text(value))
    for field in dict.fromkeys((*before, *after)):
        yield admin_pb2.AuditChange(
            field=field,
            before=_text(before[field]) if field in before else "",
            after=_text(after[field]) if field in after else "",
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
