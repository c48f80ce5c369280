"""Accounts as operators see them, read by the same functions as decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.alerts import store as alerts_store
from billing_svc.metering.overrides import store as overrides_store
from billing_svc.metering.quota import lookup, terms
from billing_svc.metering.reservations import store as reservations_store
from billing_svc.metering.usage_summary import rules as summary_rules
from billing_svc.metering.usage_summary import summarize_usage
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.stripe import prices, subscription_records


@dataclass(frozen=True, slots=True)
class Summary:
    """An account's summary. `subscriptions` has all its plan subscriptions, the latest first."""

    account: accounts_store.Account
    account_state: terms.AccountState
    statement: summary_rules.UsageSummary
    subscriptions: Sequence[subscription_records.SubscriptionRecord]
    # The prices of the subscriptions that were made by hand at Stripe, by id.
    custom_prices: Mapping[str, prices.CustomPrice]


@dataclass(frozen=True, slots=True)
class Details:
    """An account's summary, overrides, and numbers of open alerts and held reservations."""

    summary: Summary
    overrides: Sequence[tuple[str, terms.Override]]
    open_alerts: int
    held_reservations: int


async def summaries(
    conn: AsyncConnection, catalogs: versions.CatalogCache, accounts: Sequence[accounts_store.Account], now: datetime
) -> list[Summary]:
    """Return the accounts with plan, status and current usage; the number of statements does not depend on theirs."""
    if not accounts:
        return []
    catalog = await catalogs.latest(conn)
    ids = [account.account_id for account in accounts]
    asked = [lookup.MeterQuery(account_id, meter, "") for account_id in ids for meter in catalog.meters]
    known: dict[str, list[lookup.MeterState]] = {}
    for one in await lookup.read(conn, catalogs, asked, now):
        # An error is a meter that a newer catalog has just removed; it is not shown.
        if not isinstance(one, errors.BillingError):
            known.setdefault(one.asked.account_id, []).append(one)
    subscriptions = await subscription_records.plan_subscriptions_of(conn, ids)
    custom = await prices.custom_prices(conn, [row.custom_price_id for rows in subscriptions.values() for row in rows])
    return [
        Summary(
            account,
            known[account.account_id][0].facts.account_state,
            summarize_usage.present(known[account.account_id], now),
            subscriptions.get(account.account_id, ()),
            custom,
        )
        for account in accounts
    ]


async def details(conn: AsyncConnection, catalogs: versions.CatalogCache, account_id: str, now: datetime) -> Details:
    """Return an account's details. Raises AccountNotFound."""
    account = await accounts_store.find(conn, account_id)
    if account is None:
        raise errors.AccountNotFound(f"account_id: there is no account {account_id!r}", {"account_id": account_id})
    (summary,) = await summaries(conn, catalogs, [account], now)
    return Details(
        summary,
        await overrides_store.in_force(conn, account_id, now),
        await alerts_store.count_open(conn, account_id),
        await reservations_store.count_held(conn, account_id, now),
    )
