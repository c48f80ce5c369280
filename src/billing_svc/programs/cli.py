"""The command line. Each command reads its settings, sets up the log, and calls the module that does the work."""

# ruff: noqa: PLC0415 - imported inside the commands, so that --help and wrong options are answered at once

import contextlib
import importlib.metadata
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import accounts, catalog, common, doctor, events, findings, reconcile

if TYPE_CHECKING:
    from billing_svc.platform.settings import DatabaseSettings

# Exit codes: for a mistake in the options or the settings, and for any other failure that a person can repair.
_EXIT_USAGE, _EXIT_FAILED = 2, 1
# The highest port; 0 picks a free port.
_PORT_MAX = 65_535
# As many as a large machine has cores; each worker has its own pool of connections.
_WORKERS_MAX = 64

app = typer.Typer(
    help="Quotas, usage and subscriptions, in agreement with Stripe.",
    no_args_is_help=True,
    add_completion=False,
    # typer's tracebacks would not be written to the log.
    pretty_exceptions_enable=False,
)
app.add_typer(catalog.app, name="catalog")
app.add_typer(accounts.account_app, name="account")
app.add_typer(accounts.usage_app, name="usage")
app.add_typer(events.app, name="events")
app.add_typer(findings.app, name="findings")
app.command("audit")(accounts.show_audit)
app.command("reconcile")(reconcile.reconcile)
app.command("doctor")(doctor.doctor)
sandbox_app = typer.Typer(help="The stand-in for Stripe that `billing-svc dev` runs.", no_args_is_help=True)
app.add_typer(sandbox_app, name="sandbox")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn errors that a person can repair into a sentence on stderr and an exit code; a defect stays an exception."""
    try:
        yield
    except common.Failed as failure:
        explained = _explained(failure.__cause__)
        if explained is None:
            traceback.print_exception(failure.__cause__)
        else:
            typer.echo(f"billing-svc: {explained[0]}", err=True)
        sys.exit(failure.code)
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        sentence, code = explained
        typer.echo(f"billing-svc: {sentence}", err=True)
        sys.exit(code)


def _explained(error: BaseException | None) -> tuple[str, int] | None:
    import sqlalchemy as sa

    from billing_svc.api.transport import serving
    from billing_svc.catalog import loading
    from billing_svc.platform import errors, settings
    from billing_svc.platform.database import privileges

    match error:
        case settings.SettingsError():
            return str(error), _EXIT_USAGE
        case common.Refusal() | loading.CatalogError() | errors.BillingError() | privileges.RolesMissingError():
            return str(error), _EXIT_FAILED
        case sa.exc.OperationalError():
            # The driver's first line names host and user; the other lines are guesses at the cause.
            return f"the database cannot be used: {str(error.orig).splitlines()[0]}", _EXIT_FAILED
        case serving.CannotListen():
            return "BILLING_LISTEN: cannot listen on the address; does another server use it?", _EXIT_FAILED
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
    workers: Annotated[int, typer.Option(min=1, max=_WORKERS_MAX, help="Processes on one port; only on Linux.")] = 1,
    *,
    shared_port: Annotated[bool, typer.Option("--shared-port", hidden=True)] = False,
) -> None:
    """Answer gRPC calls until SIGTERM or SIGINT. Any number of servers may run."""
    from billing_svc.api import transport
    from billing_svc.platform import logs, settings

    transport.prepare()
    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)

    async def run() -> None:
        await _require_catalog(options)
        if workers > 1:
            from billing_svc.programs import replicas

            await replicas.run(options, workers)
        else:
            from billing_svc.programs import server

            await server.serve(options, shared_port=shared_port)

    common.run(run())


@app.command()
def worker() -> None:
    """Apply Stripe's events, send usage and do other work that is due, until SIGTERM or SIGINT. Several may run."""
    from billing_svc.platform import logs, settings

    options = settings.read()
    logs.configure(options.log_level, dev=options.dev)
    common.require_schema(options)
    from billing_svc.programs import worker as loops

    common.run(loops.work(options))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version. Needs only DATABASE_URL; running it again changes nothing."""
    from billing_svc.platform import logs, settings

    options = settings.read_database()
    logs.configure(options.log_level, dev=options.dev)
    from billing_svc.platform.database import migrating

    typer.echo(f"the schema is at revision {migrating.upgrade(common.database_url(options))}")


@app.command()
def dev(
    catalog: Annotated[Path, typer.Option(help="The catalog to sell from.")] = Path("catalogs/nyqst.yaml"),
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".dev"),
    *,
    reset: Annotated[bool, typer.Option("--reset", help="Delete the contents of the data folder first.")] = False,
    grpc_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free port.")] = 50_051,
    gateway_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free port.")] = 8_080,
    sandbox_port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free port.")] = 12_111,
) -> None:
    """Run everything on this machine: Postgres, a stand-in for Stripe, server, worker and gateway."""
    from billing_svc.programs.dev import options, running

    chosen = options.read(
        catalog=catalog,
        data_dir=data_dir,
        reset=reset,
        requested=options.Ports(grpc_port, gateway_port, sandbox_port),
    )
    running.run(chosen)


@sandbox_app.command("advance")
def sandbox_advance(
    duration: Annotated[str, typer.Argument(help="How far: 90m, 12h, 35d, 1d12h.")],
    sandbox_port: Annotated[int, typer.Option(min=1, max=_PORT_MAX, help="As given to `dev`.")] = 12_111,
    pause: Annotated[float | None, typer.Option(min=0, help="Seconds of real time after each event.")] = None,
) -> None:
    """Move both clocks (Stripe's and ours) of a running `billing-svc dev` from each due event to the next."""
    from billing_svc.programs.dev import programs

    programs.become_sandbox_advance(duration, sandbox_port, pause)


async def _require_catalog(options: "DatabaseSettings") -> None:
    from billing_svc.catalog import versions
    from billing_svc.platform.database import engine, transactions

    pool = engine.create_engine(common.database_url(options), pool_size=1)
    try:
        if await transactions.Transactions(pool).read(versions.newest) is None:
            common.refuse("no catalog was ever published: run `billing-svc catalog apply FILE`")
    finally:
        await pool.dispose()
