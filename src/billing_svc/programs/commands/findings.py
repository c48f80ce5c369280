"""`findings list` and `findings close`: what is wrong at Stripe and needs a person."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import json
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions
    from billing_svc.platform.findings.store import OpenFinding

app = typer.Typer(help="What is wrong at Stripe and needs a person.", no_args_is_help=True)


@app.command("list")
def list_findings(
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None, *, as_json: common.AsJson = False
) -> None:
    """List the open findings, the oldest first."""
    from billing_svc.platform.findings import store

    async def work(database: "Transactions", _clock: "Clock") -> "list[OpenFinding]":
        return await database.read(lambda conn: store.list_open(conn, account))

    found = common.on_database(work)
    if as_json:
        told = [
            {
                "id": one.finding_id,
                "kind": one.kind,
                "account": one.account_id,
                "object": one.object_id,
                "detail": one.detail,
                "amount_minor_units": one.amount,
                "currency": one.currency,
                "since": one.since.isoformat(),
                "settled_by": one.settled_by,
            }
            for one in found
        ]
        typer.echo(json.dumps({"findings": told}, indent=2))
        return
    common.table(
        "findings",
        ("id", "kind", "account", "object", "since", "money", "what", "what settles it"),
        [
            (
                one.finding_id,
                one.kind,
                one.account_id,
                one.object_id,
                one.since.isoformat(sep=" ", timespec="minutes"),
                "" if one.amount is None else f"{one.amount} minor units of {one.currency}",
                one.detail,
                one.settled_by,
            )
            for one in found
        ],
    )


@app.command("close")
def close_finding(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")],
    finding: Annotated[str, typer.Argument(metavar="FINDING", help="The finding's id, as `findings list` shows it.")],
    note: Annotated[str, typer.Option(help="How it was settled.")],
) -> None:
    """Close a finding that a person has settled. What is still wrong opens it again when it is noticed."""
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.platform.findings import store

    async def work(database: "Transactions", clock: "Clock") -> bool:
        now = clock.now()

        async def close(conn: "AsyncConnection") -> bool:
            if not await store.close(conn, account, finding, note, now):
                return False
            changes = {"finding": finding, "note": note}
            origin = audit_store.Origin(common.actor())
            await audit_store.append(conn, origin, account, "finding.closed", changes, now)
            return True

        return await database.run(close)

    if not common.on_database(work):
        common.refuse(f"account {account} has no open finding {finding}")
