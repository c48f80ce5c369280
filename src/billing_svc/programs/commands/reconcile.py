"""`reconcile`: compares subscriptions, invoices and usage with Stripe."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import json
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from billing_svc.reconciliation.reconcile import Finding

# As `diff` does if something differs.
_EXIT_DRIFT = 1


def reconcile(
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None,
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Repair differences that need no person's judgement.")] = False,
    as_json: common.AsJson = False,
) -> None:
    """Compare subscriptions, invoices and usage with Stripe. Exit status 1 if something (still) differs."""
    from billing_svc.catalog import versions
    from billing_svc.platform import clock, logs, settings
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.platform.database import engine, transactions
    from billing_svc.reconciliation import reconcile as reconciliation
    from billing_svc.stripe import client

    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)

    async def run() -> "list[Finding]":
        pool = engine.create_engine(common.database_url(options), pool_size=2)
        database = transactions.Transactions(pool)
        stripe = client.Stripe.paced(options, database)
        try:
            comparison = reconciliation.Comparison(
                database, versions.CatalogCache(), stripe, clock.from_settings(options)
            )
            with common.progress("comparing with Stripe"):
                return await comparison.run(audit_store.Origin(common.actor()), account, fix=fix)
        finally:
            await stripe.close()
            await pool.dispose()

    findings = common.run(run())
    if as_json:
        told = [
            {"kind": one.kind, "account": one.account_id, "object": one.about, "detail": one.detail} for one in findings
        ]
        typer.echo(json.dumps({"drift": told}, indent=2))
    else:
        common.table(
            "what still differs from Stripe" if fix else "what differs from Stripe",
            ("kind", "account", "object", "detail"),
            [(one.kind, one.account_id, one.about, one.detail) for one in findings],
            empty="nothing",
        )
    if findings:
        raise typer.Exit(_EXIT_DRIFT)
