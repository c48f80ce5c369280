"""`account show`, `usage show` and `audit`: an account's data, for operators."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common, usage_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from billing_svc.api.shown import AccountDetails, MeterUsage
    from billing_svc.metering.usage_summary.rules import UsageSummary
    from billing_svc.platform.audit.store import AuditEntry
    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions
    from billing_svc.usage_export.report_lists import ListedReport

account_app = typer.Typer(help="Accounts.", no_args_is_help=True)
usage_app = typer.Typer(help="The usage of accounts.", no_args_is_help=True)

_Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")]
_ENTRIES_MAX = 500


@account_app.command("show")
def show_account(account: _Account, *, as_json: common.AsJson = False) -> None:
    """Show an account: plan, subscriptions, usage, overrides, open alerts and reservations."""
    from billing_svc.api import account_overview, shown
    from billing_svc.api.conversions import admin as admin_conversions
    from billing_svc.catalog import versions

    async def work(database: "Transactions", clock: "Clock") -> "AccountDetails":
        now = clock.now()
        details = await database.read(
            lambda conn: account_overview.details(conn, versions.CatalogCache(), account, now)
        )
        return admin_conversions.to_proto_details(details, now)

    told = common.on_database(work)
    if as_json:
        common.show(told)
        return
    summary = told.account
    plan = summary.subscription
    common.table(
        f"account {account}",
        ("", ""),
        [
            ("since", shown.instant(summary.created_at)),
            ("plan", f"{plan.plan} (catalog version {plan.catalog_version})"),
            (
                "quota period",
                f"{shown.instant(plan.quota_period_start)} to {shown.instant(plan.quota_period_end)}",
            ),
            ("pay-as-you-go", "on" if plan.pay_as_you_go else "off"),
            ("past due", "yes" if plan.past_due else "no"),
            ("customer at Stripe", told.stripe_customer_id or "none"),
            ("open alerts", str(told.open_alerts)),
            ("reservations held", str(told.held_reservations)),
        ],
    )
    common.table(
        "subscriptions",
        ("subscription", "plan", "price", "seats", "status", "billing period", "ends"),
        [
            (
                one.subscription_id,
                one.plan,
                one.price or one.custom_price.price_id,
                str(one.quantity),
                shown.status(one.status) + (", collection paused" if one.HasField("collection_pause") else ""),
                f"{shown.instant(one.period_start)} to {shown.instant(one.period_end)}",
                shown.instant(one.ended_at if one.HasField("ended_at") else one.cancel_at),
            )
            for one in told.subscriptions
        ],
    )
    _show_usage(summary.usage)
    common.table(
        "overrides",
        ("meter", "included", "until", "set by", "note"),
        [
            (
                one.meter,
                "unlimited" if one.unlimited else f"{one.included:,}",
                shown.instant(one.expires_at),
                one.set_by,
                one.note,
            )
            for one in told.overrides
        ],
    )


@account_app.command("end-subscription")
def end_subscription(
    account: _Account,
    subscription: Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Its id at Stripe.")],
) -> None:
    """End one of several live plan subscriptions of an account, and credit the unused part of its price.

    The worker removes its metered items first, so that its last invoice does not charge usage a second time.
    """
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.subscriptions.records import end_duplicate

    async def work(database: "Transactions", clock: "Clock") -> str:
        origin, now = audit_store.Origin(common.actor()), clock.now()
        return await database.run(lambda conn: end_duplicate.end(conn, account, subscription, origin, now))

    if problem := common.on_database(work):
        common.refuse(problem)


@usage_app.command("show")
def show_usage(
    account: _Account,
    at: Annotated[
        str,
        typer.Option(metavar="INSTANT", help="An instant in the period: 2026-03-31, 2026-03-31T12:00Z; default: now."),
    ] = "",
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show an account's usage in a quota period, by meter."""
    from billing_svc.api import shown
    from billing_svc.api.conversions import usage_summary
    from billing_svc.catalog import versions
    from billing_svc.metering.usage_summary import summarize_usage
    from billing_svc.usage_export import report_lists

    instant = common.parsed_instant(at) if at else None

    async def work(database: "Transactions", clock: "Clock") -> "tuple[UsageSummary, Sequence[ListedReport]]":
        now = clock.now()
        query = summarize_usage.SummaryQuery(account, instant)

        async def draw(conn: "AsyncConnection") -> "tuple[UsageSummary, Sequence[ListedReport]]":
            summary = await summarize_usage.summarize(conn, versions.CatalogCache(), query, now)
            listed = await report_lists.listed(conn, report_lists.ReportFilter(account), None, _ENTRIES_MAX)
            return summary, usage_reports.shown_with(summary.under.period.start, listed)

        return await database.read(draw)

    summary, reports = common.on_database(work)
    told = usage_summary.to_proto_whole(summary)
    if as_json:
        common.show(told)
        return
    period = f"{shown.instant(told.period_start)} to {shown.instant(told.period_end)}"
    typer.echo(f"{account}: plan {told.plan}, {period}")
    _show_usage(told.meters)
    if reports:
        usage_reports.show_reports(reports)


def show_audit(
    account: Annotated[str, typer.Option(help="Only changes of this account.")] = "",
    caller: Annotated[str, typer.Option(help="Only changes by this caller, this login, or `stripe`.")] = "",
    action: Annotated[str, typer.Option(help="Only this action, such as set_override.")] = "",
    since: Annotated[str, typer.Option(metavar="INSTANT", help="From this instant on.")] = "",
    before: Annotated[str, typer.Option(metavar="INSTANT", help="Before this instant.")] = "",
    most: Annotated[int, typer.Option(min=1, max=_ENTRIES_MAX, help="How many entries.")] = 50,
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show who changed what, newest first."""
    from billing_svc.api import shown
    from billing_svc.api.conversions import audit
    from billing_svc.platform.audit import store

    choice = store.AuditFilter(
        account,
        caller,
        action,
        common.parsed_instant(since) if since else None,
        common.parsed_instant(before) if before else None,
    )

    async def work(database: "Transactions", _clock: "Clock") -> "Sequence[AuditEntry]":
        return await database.read(lambda conn: store.list_entries(conn, choice, None, most))

    told = audit.to_proto_entries(common.on_database(work))
    if as_json:
        common.show(told)
        return
    common.table(
        "audit log",
        ("when", "who", "action", "account", "request", "what"),
        [
            (
                shown.instant(one.happened_at),
                one.caller,
                one.action,
                one.account_id,
                one.request_id,
                "\n".join(
                    f"{change.field}: {change.before + ' -> ' if change.before else ''}{change.after}"
                    for change in one.changes
                ),
            )
            for one in told.entries
        ],
    )


def _show_usage(meters: "Sequence[MeterUsage]") -> None:
    common.table(
        "usage",
        ("meter", "used", "included", "percent", "reserved", "charged beyond"),
        [
            (
                one.meter,
                f"{one.used:,}",
                "unlimited" if one.unlimited else f"{one.included:,}",
                "" if one.unlimited or not one.included else f"{one.percent} %",
                f"{one.reserved:,}",
                f"{one.billable:,}",
            )
            for one in meters
        ],
    )
