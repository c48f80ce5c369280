"""Converts findings to their messages."""

from collections.abc import Sequence

from billing.v1 import admin_pb2, money_pb2
from billing_svc.api import fields, paging
from billing_svc.platform import money
from billing_svc.platform.findings import store

KIND_LENGTH_MAX = 64


def from_proto_list(request: admin_pb2.ListFindingsRequest) -> tuple[store.FindingFilter, paging.Page]:
    """Return which findings are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    if request.account_id:
        check.account_id(request.account_id)
    if len(request.kind) > KIND_LENGTH_MAX or not request.kind.isprintable():
        check.refuse("kind", f"must have at most {KIND_LENGTH_MAX} printable characters")
    choice = store.FindingFilter(request.account_id, request.kind)
    return choice, paging.from_proto(request, check, ("findings", choice), paging.instant, str, str)


def to_proto_list(rows: Sequence[store.OpenFinding], page: paging.Page) -> admin_pb2.ListFindingsResponse:
    """Return a page; `rows` has one element more than the page if there is a next page."""
    shown, token = page.cut(rows, lambda row: (row.since.isoformat(), row.account_id, row.finding_id))
    return admin_pb2.ListFindingsResponse(findings=[_to_proto_finding(row) for row in shown], next_page_token=token)


def _to_proto_finding(row: store.OpenFinding) -> admin_pb2.Finding:
    worth = None
    if row.amount is not None and row.currency is not None:
        worth = money_pb2.Money(currency=row.currency, amount=f"{money.major_units(row.amount, row.currency):f}")
    return admin_pb2.Finding(
        finding_id=row.finding_id,
        kind=row.kind,
        account_id=row.account_id,
        object_id=row.object_id,
        detail=row.detail,
        money=worth,
        since=fields.to_proto_instant(row.since),
        settled_by=row.settled_by,
    )
