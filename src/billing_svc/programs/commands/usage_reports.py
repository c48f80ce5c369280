"""`usage write-off`: forgives a usage report, which nothing has charged; and the table of reports in `usage show`."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from datetime import datetime

    from billing_svc.usage_export.report_lists import ListedReport
    from billing_svc.usage_export.rules import UsageReport


def write_off(
    report: Annotated[str, typer.Argument(metavar="REPORT", help="Its id, as `usage show` and `reconcile` show it.")],
    note: Annotated[str, typer.Option(help="Why; for the audit log.")],
    *,
    as_json: common.AsJson = False,
) -> None:
    """Forgive a usage report: it is never charged. Refused if it is charged, or while that is not known."""
    import uuid

    from billing_svc.api.conversions import usage_reports
    from billing_svc.catalog import versions
    from billing_svc.platform import clock, errors, logs, settings
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.platform.database import engine, transactions
    from billing_svc.reconciliation import write_off as write_offs
    from billing_svc.stripe import client
    from billing_svc.usage_export import report_lists

    if not note.strip() or len(note) > usage_reports.NOTE_LENGTH_MAX:
        common.refuse(f"the note has 1 to {usage_reports.NOTE_LENGTH_MAX} characters")
    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)

    async def run() -> "UsageReport":
        pool = engine.create_engine(common.database_url(options), pool_size=1)
        stripe = client.Stripe.from_settings(options)
        database = transactions.Transactions(pool)
        try:
            account_id = await database.read(lambda conn: report_lists.account_of(conn, report))
            if account_id is None:
                common.refuse(f"there is no usage report {report!r}")
            work = write_offs.WriteOffs(database, versions.CatalogCache(), stripe, clock.from_settings(options))
            origin = audit_store.Origin(common.actor(), uuid.uuid4().hex)
            return await work.write_off(write_offs.WriteOff(account_id, report, note), origin)
        except (errors.NotWritableOff, errors.LostRace) as error:
            common.refuse(error.message)
        finally:
            await stripe.close()
            await pool.dispose()

    written = common.run(run())
    if as_json:
        common.show(usage_reports.to_proto_report(written, None))
        return
    typer.echo(f"{written.account_id}: {written.units:,} units of {written.meter} are written off")


def shown_with(period_start: "datetime", rows: "Iterable[ListedReport]") -> "list[ListedReport]":
    """Return the reports to show with a period: its own, and those of any period that wait or failed."""
    from billing_svc.usage_export import states

    waiting = (*states.OPEN, states.ReportState.FAILED)
    return [one for one in rows if one.report.period_start == period_start or one.report.state in waiting]


def show_reports(rows: "Iterable[ListedReport]") -> None:
    """Print an account's usage reports, and which of them can be written off."""
    from billing_svc.usage_export import write_off_rules

    judged = [(one.report, write_off_rules.judge(one.report, one.item_write)) for one in rows]
    common.table(
        "usage reports",
        ("report", "meter", "units", "state", "note", "`usage write-off REPORT`"),
        [
            (
                report.report_id,
                report.meter,
                f"{report.units:,}",
                report.state,
                report.error or "",
                found.refusal or _MAY_BE[found.needs.name],
            )
            for report, found in judged
        ],
    )


_MAY_BE = {
    "NOTHING": "can be written off",
    "ITEM": "if its invoice item is gone at Stripe",
    "INVOICES": "if its invoice does not charge it",
}
