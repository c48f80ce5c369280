"""`account show`, `usage show` and `audit`: what there is of an account, for operators."""

# ruff: noqa: PLC0415 - imported inside, so that --help and mistakes are answered at once

from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from billing.v1 import admin_pb2, usage_pb2
    from billing_svc.metering.usage_summary.rules import Statement
    from billing_svc.platform.audit.store import Row
    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions

account_app = typer.Typer(help="Accounts.", no_args_is_help=True)
usage_app = typer.Typer(help="What accounts have used.", no_args_is_help=True)

_Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")]
_ENTRIES_MAX = 500


@account_app.command("show")
def show_account(account: _Account, *, as_json: common.AsJson = False) -> None:
    """Show an account: plan, subscriptions, usage, overrides, and what is open."""
    from billing_svc.api import account_overview
    from billing_svc.api.conversions import admin as admin_conversions
    from billing_svc.catalog import versions

    async def work(database: "Transactions", clock: "Clock") -> "admin_pb2.GetAccountResponse":
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
            ("since", common.shown_instant(summary.created_at)),
            ("plan", f"{plan.plan} (catalog version {plan.catalog_version})"),
            (
                "quota period",
                f"{common.shown_instant(plan.quota_period_start)} to {common.shown_instant(plan.quota_period_end)}",
            ),
            ("pay-as-you-go", "on" if plan.pay_as_you_go else "off"),
            ("past due", "yes" if plan.past_due else "no"),
            ("customer at Stripe", told.stripe_customer_id or "none"),
            ("alerts that nobody saw", str(told.open_alerts)),
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
                one.price,
                str(one.quantity),
                _word(_status_name(one.status)),
                f"{common.shown_instant(one.period_start)} to {common.shown_instant(one.period_end)}",
                common.shown_instant(one.ended_at if one.HasField("ended_at") else one.cancel_at),
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
                common.shown_instant(one.expires_at),
                one.set_by,
                one.note,
            )
            for one in told.overrides
        ],
    )


@usage_app.command("show")
def show_usage(
    account: _Account,
    at: Annotated[
        str, typer.Option(metavar="INSTANT", help="In which period: 2026-03-31, 2026-03-31T12:00Z; left out: now.")
    ] = "",
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show what an account has used in a quota period, meter by meter."""
    from billing_svc.api.conversions import statements
    from billing_svc.catalog import versions
    from billing_svc.metering.usage_summary import drawing

    instant = common.parsed_instant(at) if at else None

    async def work(database: "Transactions", clock: "Clock") -> "Statement":
        now = clock.now()
        query = drawing.Query(account, instant)

        async def draw(conn: "AsyncConnection") -> "Statement":
            return await drawing.draw(conn, versions.CatalogCache(), query, now)

        return await database.read(draw)

    from billing.v1 import usage_pb2

    told = statements.to_proto_usage(common.on_database(work), usage_pb2.GetUsageRequest(account_id=account))
    if as_json:
        common.show(told)
        return
    period = f"{common.shown_instant(told.period_start)} to {common.shown_instant(told.period_end)}"
    typer.echo(f"{account}: plan {told.plan}, {period}")
    _show_usage(told.meters)


def show_audit(
    account: Annotated[str, typer.Option(help="Only what was done to this account.")] = "",
    caller: Annotated[str, typer.Option(help="Only what this caller, login, or `stripe` did.")] = "",
    action: Annotated[str, typer.Option(help="Only this action, such as set_override.")] = "",
    since: Annotated[str, typer.Option(metavar="INSTANT", help="From this instant on.")] = "",
    before: Annotated[str, typer.Option(metavar="INSTANT", help="Before this instant.")] = "",
    most: Annotated[int, typer.Option(min=1, max=_ENTRIES_MAX, help="How many entries.")] = 50,
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show who changed what, newest first."""
    from billing.v1 import admin_pb2
    from billing_svc.api.conversions import audit
    from billing_svc.platform.audit import store

    choice = store.Filter(
        account,
        caller,
        action,
        common.parsed_instant(since) if since else None,
        common.parsed_instant(before) if before else None,
    )

    async def work(database: "Transactions", _clock: "Clock") -> "Sequence[Row]":
        return await database.read(lambda conn: store.list_entries(conn, choice, None, most))

    entries = [audit.to_proto_entry(row) for row in common.on_database(work)]
    if as_json:
        common.show(admin_pb2.ListAuditEntriesResponse(entries=entries))
        return
    common.table(
        "audit log",
        ("when", "who", "action", "account", "request", "what"),
        [
            (
                common.shown_instant(one.happened_at),
                one.caller,
                one.action,
                one.account_id,
                one.request_id,
                "\n".join(
                    f"{change.field}: {change.before + ' -> ' if change.before else ''}{change.after}"
                    for change in one.changes
                ),
            )
            for one in entries
        ],
    )


def _show_usage(meters: "Sequence[usage_pb2.MeterUsage]") -> None:
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


def _status_name(status: int) -> str:
    from billing.v1 import subscription_pb2

    return subscription_pb2.Status.Name(subscription_pb2.Status.ValueType(status))


def _word(name: str) -> str:
    return name.removeprefix("STATUS_").lower()
