"""The commands. Each reads its settings, sets up the log, and hands over."""

# ruff: noqa: PLC0415 - imported inside the commands, so that --help and mistakes are answered at once

import asyncio
import contextlib
import getpass
import importlib.metadata
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

if TYPE_CHECKING:
    from billing_svc.catalog import moving
    from billing_svc.settings import DatabaseSettings

# A mistake in the call or the settings; anything else that a person can mend.
_EXIT_USAGE, _EXIT_FAILED = 2, 1
# What a port can be; 0 picks a free one.
_PORT_MAX = 65_535
# As many as a large machine has cores; each has its own pool of connections.
_WORKERS_MAX = 64
# A table that is not shown on a terminal is not broken at 80 columns.
_PIPED_COLUMNS = 200

app = typer.Typer(
    help="Quotas, usage and subscriptions, in agreement with Stripe.",
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks would go past the log.
    pretty_exceptions_enable=False,
)
catalog_app = typer.Typer(help="The file that defines meters, plans and policies.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")

_CatalogFile = Annotated[Path, typer.Argument(metavar="FILE", help="A catalog file, such as catalogs/nyqst.yaml.")]


class Refusal(Exception):
    """A command that cannot be carried out as things are; the message says what mends it."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what a person can mend into sentences on stderr and an exit code; a defect stays an exception."""
    try:
        yield
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        sentence, code = explained
        typer.echo(f"billing-svc: {sentence}", err=True)
        sys.exit(code)


def _explained(error: Exception) -> tuple[str, int] | None:
    import sqlalchemy as sa

    from billing_svc import errors, settings
    from billing_svc.catalog import loading

    match error:
        case settings.SettingsError():
            return str(error), _EXIT_USAGE
        case Refusal() | loading.CatalogError() | errors.BillingError():
            return str(error), _EXIT_FAILED
        case sa.exc.OperationalError():
            # The driver's first line names host and user; the others are its guesses.
            return f"the database cannot be used: {str(error.orig).splitlines()[0]}", _EXIT_FAILED
        case RuntimeError() if "Failed to bind" in str(error):
            return "BILLING_LISTEN: the address cannot be listened on; is another server running on it?", _EXIT_FAILED
        case _:
            return None


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        try:
            version = importlib.metadata.version("billing-svc")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"billing-svc {version}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    workers: Annotated[int, typer.Option(min=1, max=_WORKERS_MAX, help="Processes on one port; Linux.")] = 1,
    *,
    shared_port: Annotated[bool, typer.Option("--shared-port", hidden=True)] = False,
) -> None:
    """Answer gRPC calls until SIGTERM or SIGINT. Any number of servers may run."""
    from billing_svc import logs, settings

    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    _require_schema(options)

    async def run() -> None:
        await _require_catalog(options)
        if workers > 1:
            from billing_svc import workers as supervising

            await supervising.run(options, workers)
        else:
            from billing_svc import server

            await server.serve(options, shared_port=shared_port)

    _run(run())


@app.command()
def worker() -> None:
    """Apply Stripe's events and do what is due, until SIGTERM or SIGINT. Any number of workers may run."""
    from billing_svc import logs, settings

    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    _require_schema(options)
    from billing_svc import worker as loops

    _run(loops.work(options))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version. Needs DATABASE_URL alone; harmless when run again."""
    from billing_svc import logs, settings

    options = settings.read_database()
    logs.configure(options.log_level, dev=options.dev)
    from billing_svc.database import migrating

    typer.echo(f"the schema is at revision {migrating.upgrade(_database_url(options))}")


@app.command()
def dev(
    catalog: Annotated[Path, typer.Option(help="The catalog to sell from.")] = Path("catalogs/nyqst.yaml"),
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".dev"),
    *,
    reset: Annotated[bool, typer.Option("--reset", help="Delete what the data folder holds, and begin anew.")] = False,
    grpc_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free one.")] = 50_051,
    gateway_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free one.")] = 8_080,
    sandbox_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free one.")] = 12_111,
) -> None:
    """Run everything on this machine: Postgres, a stand-in for Stripe, server, worker and gateway."""
    from billing_svc.dev import options, running

    chosen = options.read(
        catalog=catalog,
        data_dir=data_dir,
        reset=reset,
        requested=options.Ports(grpc_port, gateway_port, sandbox_port),
    )
    running.run(chosen)


@catalog_app.command("check")
def catalog_check(file: _CatalogFile) -> None:
    """Show what a catalog says, or everything that is wrong with it."""
    from rich.console import Console
    from rich.table import Table

    from billing_svc.catalog import checking, loading

    try:
        catalog = loading.load_file(file)
    except loading.CatalogError as error:
        for line in error.errors:
            typer.echo(line, err=True)
        sys.exit(_EXIT_FAILED)
    table = Table("plan", "price", "rate limit", "meter", "included", "beyond", title=f"{catalog.name}: {file}")
    shown = ""
    for row in checking.summary_rows(catalog):
        repeated = row.plan == shown
        first = ("", "", "") if repeated else (row.plan, row.prices, row.rate_limit)
        if not repeated and shown:
            table.add_section()
        shown = row.plan
        table.add_row(*first, row.meter, row.included, row.beyond)
    Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS, markup=False).print(table)


@catalog_app.command("apply")
def catalog_apply(file: _CatalogFile) -> None:
    """Create at Stripe what the catalog needs and is missing there, then put it in force."""
    from billing_svc import logs, settings
    from billing_svc.catalog import loading

    catalog = loading.load_file(file)
    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    _require_schema(options)
    from billing_svc import clock
    from billing_svc.database import engine, transactions
    from billing_svc.stripe import catalog_sync, client

    async def run() -> None:
        pool = engine.create_engine(_database_url(options))
        stripe = client.Stripe.from_settings(options)
        try:
            await catalog_sync.apply(
                transactions.Transactions(pool), stripe, catalog, _actor(), clock.Clock().now(), typer.echo
            )
        finally:
            await stripe.close()
            await pool.dispose()

    _run(run())


@catalog_app.command("move")
def catalog_move(
    account: Annotated[str | None, typer.Option(help="Only this account's subscriptions.")] = None,
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Move what can be moved; left out, only show it.")] = False,
) -> None:
    """Move sold subscriptions to the newest catalog: show who would be over the new limits, and with --apply do it."""
    from billing_svc import logs, settings

    options = settings.read_database()
    logs.configure(options.log_level, dev=options.dev)
    _require_schema(options)
    from billing_svc import clock
    from billing_svc.audit import store as audit_store
    from billing_svc.catalog import moving
    from billing_svc.database import engine, transactions

    async def run() -> None:
        pool = engine.create_engine(_database_url(options), pool_size=1)
        database, now = transactions.Transactions(pool), clock.Clock().now()
        try:
            seen = [move async for move in moving.preview(database, now, account)]
            _show_moves(seen)
            if apply:
                origin = audit_store.Origin(_actor())
                done = [await moving.apply(database, move, origin, now) for move in seen if not move.refusal]
                moved = [move for move in done if move is not None and not move.refusal]
                typer.echo(f"{len(moved)} of {len(seen)} subscriptions moved")
        finally:
            await pool.dispose()

    _run(run())


def _show_moves(moves: "list[moving.Move]") -> None:
    from rich.console import Console
    from rich.table import Table

    if not moves:
        typer.echo("every subscription is on the newest catalog version")
        return
    table = Table("account", "subscription", "plan", "version", "over its new limits", "cannot be moved")
    for move in moves:
        over = "\n".join(
            f"{one.meter}: {one.used:,} used, {_included(one.included_before)} included now, "
            f"{_included(one.included_after)} then, beyond: {one.beyond or 'not in the plan'}"
            for one in move.over
        )
        versions = f"{move.from_version} to {move.to_version}"
        table.add_row(move.account_id, move.subscription_id, move.plan, versions, over, move.refusal)
    Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS, markup=False).print(table)


def _included(units: int | None) -> str:
    return "unlimited" if units is None else f"{units:,}"


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run in an event loop, the faster one where it is to be had."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def _require_schema(options: "DatabaseSettings") -> None:
    from billing_svc.database import migrating

    if not migrating.is_current(_database_url(options)):
        _refuse("the database's schema is older than this version: run `billing-svc migrate`")


async def _require_catalog(options: "DatabaseSettings") -> None:
    from billing_svc.catalog import versions
    from billing_svc.database import engine, transactions

    pool = engine.create_engine(_database_url(options), pool_size=1)
    try:
        if await transactions.Transactions(pool).read(versions.newest) is None:
            _refuse("no catalog was ever put in force: run `billing-svc catalog apply FILE`")
    finally:
        await pool.dispose()


def _database_url(options: "DatabaseSettings") -> str:
    """Return the URL once it is known to be one. Raises SettingsError, which never quotes it."""
    import sqlalchemy as sa

    from billing_svc import settings
    from billing_svc.database import engine

    url = options.database_url.get_secret_value()
    try:
        engine.driver_url(url)
    except sa.exc.ArgumentError:
        raise settings.SettingsError("DATABASE_URL is not a URL: postgresql://user:password@host:port/name") from None
    except ValueError as error:
        raise settings.SettingsError(str(error)) from None
    return url


def _actor() -> str:
    """Return who runs the command, for the audit log."""
    try:
        return f"command:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "command"


def _refuse(sentence: str) -> Never:
    raise Refusal(sentence)
