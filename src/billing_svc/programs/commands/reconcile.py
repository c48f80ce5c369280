"""`reconcile`: compares subscriptions, invoices and usage with Stripe."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from billing_svc.reconciliation.findings import Finding
    from billing_svc.reconciliation.reconcile import Outcome
    from billing_svc.reconciliation.repair import Done

# As `diff` has them: something differs, and the comparison could not be made.
_EXIT_DIFFERENT, _EXIT_NOT_COMPARED = 1, 2


def reconcile(
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Compare older usage and invoices too, from this instant on.")
    ] = None,
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Repair differences that need no person's judgement.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what --fix would do, and change nothing, also no finding.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: charge without asking.")] = False,
    as_json: common.AsJson = False,
) -> None:
    """Compare subscriptions, invoices and usage with Stripe.

    Exit status: 0 if all agree, 1 if something (still) differs, 2 if the comparison could not be made.
    """
    begin = None if since is None else common.parsed_instant(since)
    done: list[Done] = []
    with common.failing_with(_EXIT_NOT_COMPARED):
        try:
            outcome, reads = _compare(account, begin, done, fix=fix and not dry_run, keep=not dry_run, yes=yes)
        except Exception:
            # What was done is said in any case: it may have charged something.
            _print_done(done)
            raise
    if as_json:
        typer.echo(json.dumps(_to_json(outcome, done, reads), indent=2))
    else:
        _print_done(done)
        _print(outcome, "what still differs from Stripe" if fix and not dry_run else "what differs from Stripe")
        if dry_run:
            _print_plan(outcome)
    typer.echo(_summary(outcome, reads), err=True)
    if outcome.findings:
        raise typer.Exit(_EXIT_DIFFERENT)


def _compare(
    account: str | None, since: "datetime | None", done: "list[Done]", *, fix: bool, keep: bool, yes: bool
) -> "tuple[Outcome, int]":
    """Return what was found, and how many reads of Stripe that took; what was done is appended to `done`."""
    from billing_svc.catalog import versions
    from billing_svc.platform import clock, logs, settings
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.platform.database import engine, transactions
    from billing_svc.reconciliation import reconcile as reconciliation
    from billing_svc.stripe import client

    chosen = settings.read()
    logs.configure(chosen.log_level, dev=chosen.dev)
    common.require_schema(chosen)

    async def run() -> "tuple[Outcome, int]":
        pool = engine.create_engine(common.database_url(chosen), pool_size=2)
        database = transactions.Transactions(pool)
        stripe = client.Stripe.paced(chosen, database)
        try:
            comparison = reconciliation.Comparison(
                database, versions.CatalogCache(), stripe, clock.from_settings(chosen)
            )
            with common.progress_bar("comparing with Stripe", "accounts' usage") as bar:

                def agree(charges: "Sequence[Finding]") -> bool:
                    bar.pause()
                    return yes or not charges or _agreed(charges)

                options = reconciliation.RunOptions(fix=fix, keep=keep, agree=agree, did=done.append, progress=bar.show)
                origin = audit_store.Origin(common.actor())
                outcome = await comparison.run(origin, reconciliation.Scope(account, since), options)
            return outcome, stripe.reads
        finally:
            await stripe.close()
            await pool.dispose()

    return common.run(run())


def _agreed(charges: "Sequence[Finding]") -> bool:
    """Ask whether to charge."""
    if not sys.stdin.isatty():
        common.refuse(f"--fix would charge {_sums(charges)}: give --yes too, or see --dry-run")
    common.table(
        "what --fix would charge",
        ("kind", "account", "object", "money", "detail"),
        [(one.kind, one.account_id, one.about, _money(one.amount, one.currency), one.detail) for one in charges],
    )
    return typer.confirm(f"charge {_sums(charges)}?", err=True)


def _sums(charges: "Sequence[Finding]") -> str:
    """Return the money by currency. An amount that is not known is said, because it is charged too."""
    sums: dict[str, int] = {}
    for one in charges:
        if one.amount is not None and one.currency is not None:
            sums[one.currency] = sums.get(one.currency, 0) + one.amount
    unknown = sum(one.amount is None for one in charges)
    told = [_money(amount, currency) for currency, amount in sorted(sums.items())]
    return " and ".join(told + ([f"{unknown} unknown amounts"] if unknown else []))


def _print_done(done: "Sequence[Done]") -> None:
    if done:
        common.table(
            "what was done",
            ("kind", "account", "object", "money", "detail"),
            [(one.kind, one.account_id, one.about, _money(one.amount, one.currency), one.detail) for one in done],
        )


def _print(outcome: "Outcome", title: str) -> None:
    common.table(
        title,
        ("kind", "account", "object", "money", "since", "detail", "what settles it"),
        [
            (
                one.kind,
                one.account_id,
                one.about,
                _money(one.amount, one.currency),
                "" if one.since is None else f"{one.since:%Y-%m-%d %H:%M}",
                one.detail,
                one.settled_by,
            )
            for one in outcome.findings
        ],
        empty="nothing",
    )


def _print_plan(outcome: "Outcome") -> None:
    charges = [one for one in outcome.findings if one.is_repairable]
    taken = sum(one.kind in {"customer", "subscription", "invoice"} for one in outcome.findings)
    typer.echo(f"--fix would take {taken} objects from Stripe, and charge {_sums(charges) or 'nothing'}")


def _money(amount: int | None, currency: str | None) -> str:
    from billing_svc.platform import money

    if amount is None or currency is None:
        return ""
    return f"{money.major_units(amount, currency):f} {currency}"


def _summary(outcome: "Outcome", reads: int) -> str:
    """Return how much was compared, and what was not."""
    compared = f"compared the usage of {outcome.accounts} accounts, with {reads} reads of Stripe"
    left = []
    if outcome.left_out.periods:
        left.append(f"{outcome.left_out.periods} settled usage periods from before {outcome.usage_since:%Y-%m-%d}")
    if outcome.left_out.invoices:
        left.append(f"{outcome.left_out.invoices} final invoices from before {outcome.invoices_since:%Y-%m-%d}")
    return compared + (f"; left out: {' and '.join(left)} (see --since)" if left else "")


def _to_json(outcome: "Outcome", done: "Sequence[Done]", reads: int) -> dict[str, object]:
    return {
        "drift": [
            {
                "kind": one.kind,
                "account": one.account_id,
                "object": one.about,
                "detail": one.detail,
                "amount_minor_units": one.amount,
                "currency": one.currency,
                "since": None if one.since is None else one.since.isoformat(),
                "settled_by": one.settled_by,
                "fix_charges": one.is_repairable,
            }
            for one in outcome.findings
        ],
        "done": [
            {
                "kind": one.kind,
                "account": one.account_id,
                "object": one.about,
                "detail": one.detail,
                "amount_minor_units": one.amount,
                "currency": one.currency,
            }
            for one in done
        ],
        "left_out": {
            "usage_periods": outcome.left_out.periods,
            "usage_before": outcome.usage_since.isoformat(),
            "invoices": outcome.left_out.invoices,
            "invoices_before": outcome.invoices_since.isoformat(),
        },
        "accounts": outcome.accounts,
        "reads": reads,
    }
