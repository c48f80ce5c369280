"""Converts alerts to and from their messages."""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.v1 import alert_pb2, subscription_pb2
from billing_svc.api import fields, paging
from billing_svc.metering.alerts import rules, store

ALERT_ID_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which page of which account's alerts is requested."""

    account_id: str
    choice: rules.AlertFilter
    page: paging.Page


def from_proto_list(request: subscription_pb2.ListAlertsRequest) -> AlertQuery:
    """Return which alerts are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    check.account_id(request.account_id)
    if request.meter:
        check.name("meter", request.meter)
    scope = ("alerts", request.account_id, request.meter, request.include_acknowledged)
    page = paging.from_proto(request, check, scope, paging.instant, paging.small_number, str)
    return AlertQuery(request.account_id, rules.AlertFilter(request.meter, request.include_acknowledged), page)


def to_proto_list(alerts: Sequence[store.StoredAlert], page: paging.Page) -> subscription_pb2.ListAlertsResponse:
    """Return a page; `alerts` has one element more than the page if there is a next page."""
    shown, token = page.cut(alerts, lambda alert: alert.position)
    return subscription_pb2.ListAlertsResponse(alerts=[to_proto_alert(one) for one in shown], next_page_token=token)


def from_proto_acknowledge(request: subscription_pb2.AcknowledgeAlertRequest) -> tuple[str, str]:
    """Return the account and the alert that was seen. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("alert_id", request.alert_id, ALERT_ID_LENGTH_MAX)
    check.done()
    return request.account_id, request.alert_id


def to_proto_alert(alert: store.StoredAlert) -> alert_pb2.Alert:
    """Return an alert as its message."""
    return alert_pb2.Alert(
        alert_id=alert.alert_id,
        account_id=alert.account_id,
        meter=alert.meter,
        percent=alert.threshold_percent,
        level=alert_pb2.AlertLevel.Value(f"ALERT_LEVEL_{alert.severity.upper()}"),
        used=alert.used,
        included=alert.included,
        period_start=fields.to_proto_instant(alert.period_start),
        period_end=fields.to_proto_instant(alert.period_end),
        raised_at=fields.to_proto_instant(alert.raised_at),
        acknowledged_at=fields.to_proto_instant(alert.acknowledged_at),
        acknowledged_by=alert.acknowledged_by or "",
    )
