"""`catalog check`, `plan`, `apply` and `move`: the file that defines meters, plans and policies."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from billing_svc.stripe.catalog_objects import Difference, Found
    from billing_svc.stripe.catalog_sync import Applied
    from billing_svc.subscriptions.catalog_moves import move_subscriptions as moves

app = typer.Typer(help="The file that defines meters, plans and policies.", no_args_is_help=True)

_CatalogFile = Annotated[Path, typer.Argument(metavar="FILE", help="A catalog file, such as catalogs/nyqst.yaml.")]


@app.command("check")
def check(file: _CatalogFile) -> None:
    """Show a catalog's plans and limits, or all errors in it."""
    from rich.table import Table

    from billing_svc.catalog import checking, loading

    try:
        catalog = loading.load_file(file)
    except loading.CatalogError as error:
        for line in error.errors:
            typer.echo(line, err=True)
        sys.exit(1)
    table = Table("plan", "price", "rate limit", "meter", "included", "beyond", title=f"{catalog.name}: {file}")
    shown = ""
    for row in checking.summary_rows(catalog):
        repeated = row.plan == shown
        first = ("", "", "") if repeated else (row.plan, row.prices, row.rate_limit)
        if not repeated and shown:
            table.add_section()
        shown = row.plan
        table.add_row(*first, row.meter, row.included, row.beyond)
    common.console().print(table)


@app.command("plan")
def plan(file: _CatalogFile, *, as_json: common.AsJson = False) -> None:
    """Show what `apply` would create at Stripe, and what was changed there by hand. Changes nothing."""
    from billing_svc.catalog import loading
    from billing_svc.platform import logs, settings

    catalog = loading.load_file(file)
    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    from billing_svc.stripe import catalog_sync, client

    async def run() -> "tuple[Found, list[Difference]]":
        stripe = client.Stripe.from_settings(options)
        try:
            return await catalog_sync.compare(stripe, catalog)
        finally:
            await stripe.close()

    found, differences = common.run(run())
    if as_json:
        ids = {
            "products": sorted(found.products),
            "prices": {key: price["id"] for key, price in found.prices.items()},
            "meters": {key: meter["id"] for key, meter in found.meters.items()},
            "portal_configuration": None if found.portal is None else found.portal["id"],
        }
        told = [
            {"kind": one.kind, "key": one.key, "detail": one.detail, "operation": one.operation, "drift": one.drift}
            for one in differences
        ]
        typer.echo(json.dumps({"catalog": catalog.name, "differences": told, **ids}, indent=2))
        return
    common.table(
        f"catalog {catalog.name} at Stripe",
        ("object", "name", "difference", "changed at Stripe"),
        [(one.kind, one.key, one.detail, "yes" if one.drift else "") for one in differences],
        empty="nothing to do",
    )


@app.command("apply")
def apply(file: _CatalogFile, *, as_json: common.AsJson = False) -> None:
    """Create the catalog's missing objects at Stripe, then publish the catalog. With --json: print the ids."""
    from billing_svc.catalog import loading
    from billing_svc.platform import logs, settings

    catalog = loading.load_file(file)
    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)
    from billing_svc.platform import clock
    from billing_svc.platform.database import engine, transactions
    from billing_svc.stripe import catalog_sync, client

    async def run() -> "Applied":
        pool = engine.create_engine(common.database_url(options))
        stripe = client.Stripe.from_settings(options)
        try:
            return await catalog_sync.apply(
                transactions.Transactions(pool),
                stripe,
                catalog,
                common.actor(),
                clock.from_settings(options),
                # With --json, stdout has only the result.
                lambda line: typer.echo(line, err=as_json),
            )
        finally:
            await stripe.close()
            await pool.dispose()

    applied = common.run(run())
    if as_json:
        typer.echo(json.dumps({"catalog": catalog.name, **dataclasses.asdict(applied)}, indent=2))


@app.command("move")
def move_subscriptions(
    account: Annotated[str | None, typer.Option(help="Only this account's subscriptions.")] = None,
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Move the subscriptions; without it, only show them.")] = False,
) -> None:
    """Move sold subscriptions to the newest catalog. Shows which would be over the new limits; --apply moves them."""
    from billing_svc.platform import logs, settings

    options = settings.read_database()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)
    from billing_svc.platform import clock
    from billing_svc.platform.audit import store as audit_store
    from billing_svc.platform.database import engine, transactions
    from billing_svc.subscriptions.catalog_moves import move_subscriptions as moves

    async def run() -> None:
        pool = engine.create_engine(common.database_url(options), pool_size=1)
        database, now = transactions.Transactions(pool), clock.from_settings(options).now()
        try:
            seen = [move async for move in moves.preview(database, now, account)]
            _show_moves(seen)
            if apply:
                origin = audit_store.Origin(common.actor())
                done = [await moves.apply(database, move, origin, now) for move in seen if not move.refusal]
                moved = [move for move in done if move is not None and not move.refusal]
                typer.echo(f"{len(moved)} of {len(seen)} subscriptions moved")
        finally:
            await pool.dispose()

    common.run(run())


def _show_moves(moves: "list[moves.Move]") -> None:
    from rich.table import Table

    if not moves:
        typer.echo("every subscription is on the newest catalog version")
        return
    columns = ("account", "subscription", "plan", "version", "over its new limits", "held on the old terms")
    table = Table(*columns, "cannot be moved")
    for move in moves:
        over = "\n".join(
            f"{one.meter}: {one.used:,} used, {_included(one.included_before)} included now, "
            f"{_included(one.included_after)} then, beyond: {one.beyond or 'not in the plan'}"
            for one in move.over
        )
        versions = f"{move.from_version} to {move.to_version}"
        held = "\n".join(f"{one.meter}: {one.units:,}" for one in move.holds)
        table.add_row(move.account_id, move.subscription_id, move.plan, versions, over, held, move.refusal)
    common.console().print(table)


def _included(units: int | None) -> str:
    return "unlimited" if units is None else f"{units:,}"
