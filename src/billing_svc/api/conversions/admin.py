"""Converts accounts to AdminService's messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from billing.v1 import admin_pb2, subscription_pb2
from billing_svc.api import account_overview, fields, paging
from billing_svc.api.conversions import catalog as catalog_conversions
from billing_svc.api.conversions import quota as quota_conversions
from billing_svc.api.conversions import subscriptions as subscriptions_conversions
from billing_svc.api.conversions import usage_summary
from billing_svc.stripe import prices, subscription_records

# How many subscriptions an answer lists; further subscriptions of an account are only in the database.
SUBSCRIPTIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class AccountQuery:
    """Which accounts are requested; empty or UNSPECIFIED: all."""

    prefix: str
    plan: str
    status: subscription_pb2.Status.ValueType
    page: paging.Page

    def matches(self, account: admin_pb2.AccountSummary) -> bool:
        """Say whether an account matches plan and status."""
        subscription = account.subscription
        return self.plan in {"", subscription.plan} and self.status in {0, subscription.status}


def from_proto_list(request: admin_pb2.ListAccountsRequest) -> AccountQuery:
    """Return the requested accounts' filter. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    if request.account_id_prefix:
        check.identifier("account_id_prefix", request.account_id_prefix, fields.ACCOUNT_ID_LENGTH_MAX)
    if request.plan:
        check.name("plan", request.plan)
    scope = ("accounts", request.account_id_prefix, request.plan, request.status)
    page = paging.from_proto(request, check, scope, str)
    return AccountQuery(request.account_id_prefix, request.plan, request.status, page)


def from_proto_get(request: admin_pb2.GetAccountRequest) -> str:
    """Return the requested account's id. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.done()
    return request.account_id


def to_proto_list(
    summaries: Sequence[account_overview.Summary], asked: AccountQuery, next_page_token: str, now: datetime
) -> admin_pb2.ListAccountsResponse:
    """Return a page, without its accounts that do not match."""
    accounts = [to_proto_summary(one, now) for one in summaries]
    return admin_pb2.ListAccountsResponse(
        accounts=[one for one in accounts if asked.matches(one)], next_page_token=next_page_token
    )


def to_proto_summary(summary: account_overview.Summary, now: datetime) -> admin_pb2.AccountSummary:
    """Return an account's summary."""
    statement = summary.statement
    return admin_pb2.AccountSummary(
        account_id=summary.account.account_id,
        created_at=fields.to_proto_instant(summary.account.created_at),
        subscription=subscriptions_conversions.to_proto_subscription(
            statement.under, summary.account_state, summary.subscriptions, summary.custom_prices, now
        ),
        usage=[usage_summary.to_proto_meter_usage(line) for line in statement.lines if line.matters],
    )


def to_proto_details(details: account_overview.Details, now: datetime) -> admin_pb2.GetAccountResponse:
    """Return an account's details."""
    summary = details.summary
    return admin_pb2.GetAccountResponse(
        account=to_proto_summary(summary, now),
        stripe_customer_id=summary.account.customer_id or "",
        subscriptions=[
            _to_proto_held(row, summary.custom_prices, now) for row in summary.subscriptions[:SUBSCRIPTIONS_MAX]
        ],
        overrides=[quota_conversions.to_proto_override(meter, override) for meter, override in details.overrides],
        open_alerts=details.open_alerts,
        held_reservations=details.held_reservations,
    )


def _to_proto_held(
    row: subscription_records.SubscriptionRecord, custom_prices: Mapping[str, prices.CustomPrice], now: datetime
) -> subscription_pb2.Subscription:
    """Return a subscription with its own plan and period, whether or not it is in force."""
    message = subscription_pb2.Subscription(
        plan=row.plan,
        status=catalog_conversions.to_proto_status(row.status),
        period_start=fields.to_proto_instant(row.billing_period_start),
        period_end=fields.to_proto_instant(row.billing_period_end),
        cancel_at_period_end=row.cancel_at_period_end,
        past_due=row.status == "past_due",
        quantity=row.quantity,
        price=row.price,
        trial_end=fields.to_proto_instant(row.trial_end),
        catalog_version=row.catalog_version,
        subscription_id=row.subscription_id,
        ended_at=fields.to_proto_instant(row.ended_at),
    )
    if row.effective_until is not None and row.effective_until > now:
        message.cancel_at.FromDatetime(row.effective_until)
    subscriptions_conversions.add_pauses(message, row)
    custom = custom_prices.get(row.custom_price_id or "")
    if custom is not None:
        message.custom_price.CopyFrom(subscriptions_conversions.to_proto_custom_price(custom))
    return message
