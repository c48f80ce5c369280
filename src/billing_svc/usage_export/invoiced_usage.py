"""What became of the invoices that charge a counter's reports: forgiven, lost, paid back; from the stored invoices."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables
from billing_svc.usage_export import rules
from billing_svc.usage_export.states import ReportState

# Void: a person took the invoice back. Uncollectible: it was given up. See the table of statuses in ADR 0026.
_UNCHARGED = frozenset({"void", "uncollectible"})
_LOST_DISPUTE = "lost"

# A report that a meter bills is on the line of its meter that ends last of those around its timestamp: a bound belongs
# to both periods. A revised invoice is judged by its revision.
_CHARGING = sa.text("""
    SELECT r.report_id, r.to_units - r.from_units AS units,
           r.plan, r.catalog_version, r.stripe_event_name AS event_name, r.customer_id, r.subscription_id,
           i.invoice_id, coalesce(v.status, CASE WHEN i.latest_revision_id IS NULL THEN i.status ELSE 'open' END)
           AS status, i.currency, i.amount_refunded, i.amount_credited, i.dispute_status, line.began
      FROM usage_reports AS r
      JOIN invoices AS i
        ON i.account_id = r.account_id AND i.customer_id = r.customer_id AND i.created_at >= r.period_start
      LEFT JOIN invoices AS v ON v.account_id = i.account_id AND v.invoice_id = i.latest_revision_id
     CROSS JOIN LATERAL (
           SELECT max(CAST(value->>'period_start' AS bigint)) AS began
             FROM jsonb_array_elements(i.lines)
            WHERE CASE WHEN r.state = 'sent'
                       THEN i.subscription_id = r.subscription_id AND value->>'meter' = r.meter
                            AND EXTRACT(epoch FROM r.reported_for)
                                BETWEEN CAST(value->>'period_start' AS bigint) AND CAST(value->>'period_end' AS bigint)
                       ELSE value->>'item' = r.invoice_item_id END
           ) AS line
     WHERE r.account_id = :account_id AND r.meter = :meter AND r.period_start = :period_start
       AND r.state IN ('sent', 'itemised', 'invoiced') AND line.began IS NOT NULL
""")


@dataclass(frozen=True, slots=True)
class ChargingInvoice:
    """An invoice that charges usage of a counter, with what was paid back of it, in minor units."""

    invoice_id: str
    status: str
    currency: str
    amount_refunded: int
    amount_credited: int
    dispute_status: str | None

    @property
    def is_paid_back(self) -> bool:
        """Say whether money of the invoice was paid back, wholly or in part."""
        return self.amount_refunded > 0 or self.amount_credited > 0 or self.dispute_status == _LOST_DISPUTE


@dataclass(frozen=True, slots=True)
class _Charged:
    report_id: str
    units: int
    charge: rules.ChargeTerms
    invoice: ChargingInvoice
    # When the line's period began.
    began: int


async def uncharged(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> list[rules.AccruedUnits]:
    """Return a counter's units that were written off, forgiven or lost and not taken back yet, by charge.

    What was taken back of them is in reports that are written off, too.
    """
    found: dict[rules.ChargeTerms, int] = {}
    for charge, units in await _written_off(conn, account_id, meter, period_start):
        found[charge] = found.get(charge, 0) + units
    for one in _last_lines(await _charged(conn, account_id, meter, period_start)):
        if one.invoice.status in _UNCHARGED:
            found[one.charge] = found.get(one.charge, 0) + one.units
    return [rules.AccruedUnits(charge, units) for charge, units in found.items() if units > 0]


async def paid_back(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> list[ChargingInvoice]:
    """Return the invoices that charge a counter's usage and of which money was paid back."""
    charged = await _charged(conn, account_id, meter, period_start)
    invoices = {one.invoice.invoice_id: one.invoice for one in charged if one.invoice.is_paid_back}
    return [invoices[invoice_id] for invoice_id in sorted(invoices)]


async def _charged(conn: AsyncConnection, account_id: str, meter: str, period_start: datetime) -> list[_Charged]:
    counter = {"account_id": account_id, "meter": meter, "period_start": period_start}
    return [
        _Charged(
            row.report_id,
            row.units,
            rules.ChargeTerms(row.plan, row.catalog_version, row.event_name, row.customer_id, row.subscription_id),
            ChargingInvoice(
                row.invoice_id,
                row.status,
                row.currency,
                row.amount_refunded,
                row.amount_credited,
                row.dispute_status,
            ),
            row.began,
        )
        for row in await conn.execute(_CHARGING, counter)
    ]


def _last_lines(charged: Iterable[_Charged]) -> list[_Charged]:
    """Return each report once, with the invoice of its last line; of several, one that charges it goes before."""
    found: dict[str, _Charged] = {}
    for one in sorted(charged, key=lambda one: (one.began, one.invoice.status not in _UNCHARGED)):
        found[one.report_id] = one
    return list(found.values())


async def _written_off(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> list[tuple[rules.ChargeTerms, int]]:
    reports = tables.usage_reports.c
    query = sa.select(
        reports.plan,
        reports.catalog_version,
        reports.stripe_event_name,
        reports.customer_id,
        reports.subscription_id,
        reports.to_units - reports.from_units,
    ).where(
        reports.account_id == account_id,
        reports.meter == meter,
        reports.period_start == period_start,
        reports.state == ReportState.WRITTEN_OFF,
    )
    return [(rules.ChargeTerms(*row[:5]), row[5]) for row in await conn.execute(query)]
