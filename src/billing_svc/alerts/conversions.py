"""Alerts to and from their messages."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from billing.v1 import alert_pb2, subscription_pb2
from billing_svc import errors, fields
from billing_svc.alerts import rules, store

PAGE_SIZE = 50
PAGE_SIZE_MAX = 500
ALERT_ID_LENGTH_MAX = 64

_POSITION = re.compile(r"([0-9T:.-]{19,26}\+00:00) ([0-9]{1,4}) ([0-9a-f]{32})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of which list is asked for."""

    account_id: str
    choice: rules.Choice
    size: int
    after: store.Position | None

    def seal(self, position: str) -> str:
        """Return what binds a position to this list, so that a token of another one, or an altered one, is noticed."""
        text = f"alerts {self.account_id} {self.choice.meter} {self.choice.with_acknowledged} {position}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_proto_list(request: subscription_pb2.ListAlertsRequest) -> Page:
    """Return which alerts are asked for. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    check.account_id(request.account_id)
    if request.meter:
        check.name("meter", request.meter)
    if not 0 <= request.page_size <= PAGE_SIZE_MAX:
        check.refuse("page_size", f"is {request.page_size}; must be 1 to {PAGE_SIZE_MAX}")
    check.done()
    choice = rules.Choice(request.meter, request.include_acknowledged)
    page = Page(request.account_id, choice, request.page_size or PAGE_SIZE, after=None)
    if not request.page_token:
        return page
    return replace(page, after=_position(fields.from_page_token(request.page_token), page))


def to_proto_list(alerts: Sequence[store.StoredAlert], page: Page) -> subscription_pb2.ListAlertsResponse:
    """Return a page; `alerts` holds one more than it where there is a next one."""
    shown = alerts[: page.size]
    token = ""
    if len(alerts) > page.size:
        raised_at, percent, alert_id = shown[-1].position
        position = f"{raised_at.isoformat()} {percent} {alert_id}"
        token = fields.to_page_token(f"{page.seal(position)} {position}")
    return subscription_pb2.ListAlertsResponse(alerts=[to_proto_alert(one) for one in shown], next_page_token=token)


def from_proto_acknowledge(request: subscription_pb2.AcknowledgeAlertRequest) -> tuple[str, str]:
    """Return the account and the alert that was seen. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("alert_id", request.alert_id, ALERT_ID_LENGTH_MAX)
    check.done()
    return request.account_id, request.alert_id


def to_proto_alert(alert: store.StoredAlert) -> alert_pb2.Alert:
    """Return an alert as it stands."""
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


def _position(text: str, page: Page) -> store.Position:
    seal, _, position = text.partition(" ")
    # The seal is no secret, so what it holds is checked as well.
    found = _POSITION.fullmatch(position)
    if seal != page.seal(position) or found is None:
        raise errors.InvalidPageToken("page_token: is none that this list gave out with these filters")
    raised_at, percent, alert_id = found.groups()
    try:
        return (datetime.fromisoformat(raised_at), int(percent), alert_id)
    except ValueError:
        raise errors.InvalidPageToken("page_token: is none that this list gave out") from None
