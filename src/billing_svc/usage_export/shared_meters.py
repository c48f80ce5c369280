"""Meters that several live items bill: each of their invoices would charge the same usage.

Stripe adds up a meter by customer, so every item that names the meter charges all of the customer's usage. While there
are several, nothing is sent to the meter: usage becomes an invoice item. What was sent before is a finding.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform.findings import store as findings_store
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import subscription_records
from billing_svc.usage_export import rules, states, store

# A quota period, in which a report begins, may begin before the billing period that charges the report.
_PERIODS_APART_MAX = timedelta(days=32)


async def events_of(
    conn: AsyncConnection, catalogs: versions.CatalogCache, record: subscription_records.SubscriptionRecord
) -> list[str]:
    """Return the event names of the meters that a subscription's items bill, one for each item."""
    plan = (await catalogs.get(conn, record.catalog_version)).plan(record.plan)
    sold = plan.metered_prices if record.is_plan else plan.charged(pay_as_you_go=True)
    missing = record.missing_meters.split()
    return [price.lookup_key for price in sold if price.lookup_key not in missing] + record.extra_meters.split()


async def billers(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    held: Iterable[subscription_records.SubscriptionRecord],
    customer_id: str,
    event_name: str,
) -> list[subscription_records.SubscriptionRecord]:
    """Return the live subscriptions whose items bill a customer's meter, once for each item.

    They are in the order in which they began, then of their ids.
    """
    found: list[subscription_records.SubscriptionRecord] = []
    for record in sorted(held, key=lambda one: (one.effective_from, one.subscription_id)):
        if record.customer_id == customer_id and _is_live(record):
            found += [record] * (await events_of(conn, catalogs, record)).count(event_name)
    return found


def taker(
    held: Iterable[subscription_records.SubscriptionRecord],
    billers: Sequence[subscription_records.SubscriptionRecord],
    report: rules.UsageReport,
) -> str | None:
    """Return the subscription whose next invoice is to take a report's invoice item; None: that of any.

    If there is another, it is not one whose collection is paused, because its invoice may be void, nor one that the
    worker is about to end.
    """
    giving = [record for record in held if record.customer_id == report.customer_id and record.is_giving]
    giving.sort(key=lambda one: (one.subscription_id != report.subscription_id, one.effective_from))
    collected = [record for record in giving if record.collection_pause is None and not record.superfluous]
    if len(billers) > 1:
        return next((one for one in billers if one in collected), billers[0]).subscription_id
    return collected[0].subscription_id if collected and len(collected) < len(giving) else None


async def note(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    account_id: str,
    extra_since: Mapping[tuple[str, str], datetime],
    now: datetime,
) -> None:
    """Open a finding for each meter whose usage several items will charge, with the money that is too much.

    `extra_since`: when a further item of (subscription, event name) was added, as far as that is known; such an item
    charges only later usage. A finding never becomes smaller: the invoices may be paid by then.
    """
    held = await subscription_records.of_account(conn, account_id)
    living = [record for record in held if _is_live(record)]
    if len(living) < 2 and not any(record.extra_meters for record in living):  # noqa: PLR2004 - two bill it twice
        return
    for (customer_id, event_name), intervals in (await _billing(conn, catalogs, living, extra_since)).items():
        sent = await _sent(conn, account_id, customer_id, event_name, min(start for start, _ in intervals))
        amount, units = await _too_much(conn, catalogs, sent, intervals)
        known = (await findings_store.open_about(conn, account_id, event_name)).get(
            findings_store.Kind.USAGE_BILLED_TWICE
        )
        if units > 0 and (known is None or amount > (known.amount or 0)):
            currency = (await catalogs.get(conn, sent[0].catalog_version)).currency
            await findings_store.report(conn, account_id, _finding(event_name, units, amount, currency), now)


async def note_end(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    ended: subscription_records.SubscriptionRecord,
    now: datetime,
) -> None:
    """Close the findings that a subscription's end has settled: it ended without an invoice for its last usage.

    Its metered items were removed before; that is done for a superfluous subscription only.
    """
    held = await subscription_records.of_account(conn, ended.account_id)
    living = [record for record in held if _is_live(record)]
    shared = {event_name for _, event_name in await _billing(conn, catalogs, living, {})}
    for finding in await findings_store.list_open(conn, ended.account_id):
        is_current = finding.since >= ended.billing_period_start
        if finding.kind == findings_store.Kind.USAGE_BILLED_TWICE and is_current and finding.object_id not in shared:
            await findings_store.settle(
                conn, ended.account_id, findings_store.Kind.USAGE_BILLED_TWICE, finding.object_id, now
            )


def _is_live(record: subscription_records.SubscriptionRecord) -> bool:
    return not record.is_over and record.status != "incomplete"


async def _billing(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    living: Iterable[subscription_records.SubscriptionRecord],
    extra_since: Mapping[tuple[str, str], datetime],
) -> dict[tuple[str, str], list[tuple[datetime, datetime]]]:
    """Return, for each (customer, event name) that several items bill, the interval that each item will charge."""
    found: dict[tuple[str, str], list[tuple[datetime, datetime]]] = {}
    for record in living:
        if record.superfluous:
            continue  # its metered items are about to be removed
        start, end = record.billing_period_start, record.billing_period_end
        if record.trial_end is not None:
            start = min(max(start, record.trial_end), end)  # usage in a trial is free
        extra = record.extra_meters.split()
        events = await events_of(conn, catalogs, record)
        for event_name in events[: len(events) - len(extra)]:
            found.setdefault((record.customer_id, event_name), []).append((start, end))
        for event_name in extra:
            since = extra_since.get((record.subscription_id, event_name), end)
            found.setdefault((record.customer_id, event_name), []).append((max(start, since), end))
    return {key: intervals for key, intervals in found.items() if len(intervals) > 1}


async def _sent(
    conn: AsyncConnection, account_id: str, customer_id: str, event_name: str, since: datetime
) -> list[rules.UsageReport]:
    return [
        report
        for report in await store.all_of_account(conn, account_id, since - _PERIODS_APART_MAX)
        if (report.customer_id, report.stripe_event_name, report.state)
        == (customer_id, event_name, states.ReportState.SENT)
    ]


async def _too_much(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    sent: Sequence[rules.UsageReport],
    intervals: Sequence[tuple[datetime, datetime]],
) -> tuple[int, int]:
    """Return the money in minor units, and the units, that are charged beyond the first time."""
    units: dict[tuple[str, int, str], int] = {}
    for report in sent:
        times = sum(start <= report.reported_for < end for start, end in intervals)
        key = (report.plan, report.catalog_version, report.meter)
        units[key] = units.get(key, 0) + report.units * max(0, times - 1)
    amount = 0
    for (plan, version, meter), number in units.items():
        catalog = await catalogs.get(conn, version)
        price = pricing_rules.metered_price(catalog, plan, meter)
        if price is not None:
            amount += pricing_rules.amount(pricing_rules.unit_price_in_minor_units(catalog, price), number)
    return amount, sum(units.values())


def _finding(event_name: str, units: int, amount: int, currency: str) -> findings_store.NewFinding:
    return findings_store.NewFinding(
        findings_store.Kind.USAGE_BILLED_TWICE,
        event_name,
        f"{units} units too many will be charged: they were sent to {event_name} before it was known that several live"
        " items bill it",
        "end the subscription that is not wanted by `billing-svc account end-subscription` before its period ends; or"
        " credit the money after the invoice, then `billing-svc findings close`",
        amount,
        currency,
    )
