"""What commands share: running on the database, refusing, and showing what was found."""

# ruff: noqa: PLC0415 - imported inside, so that --help and mistakes are answered at once

import asyncio
import contextlib
import getpass
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Never, TypeVar

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console

    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions
    from billing_svc.platform.settings import DatabaseSettings

# A table that is not shown on a terminal is not broken at 80 columns.
_PIPED_COLUMNS = 200

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class Refusal(Exception):
    """A command that cannot be carried out as things are; the message says what mends it."""


def refuse(sentence: str) -> Never:
    """End the command with a sentence."""
    raise Refusal(sentence)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in an event loop, the faster one where it is to be had."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def on_database(work: "Callable[[Transactions, Clock], Awaitable[T]]") -> T:
    """Run work that needs DATABASE_URL alone. Raises Refusal if the schema is older than this code."""
    from billing_svc.platform import clock, logs, settings
    from billing_svc.platform.database import engine, transactions

    options = settings.read_database()
    logs.configure(options.log_level, dev=options.dev)
    require_schema(options)

    async def connected() -> T:
        pool = engine.create_engine(database_url(options), pool_size=1)
        try:
            return await work(transactions.Transactions(pool), clock.from_settings(options))
        finally:
            await pool.dispose()

    return run(connected())


def require_schema(options: "DatabaseSettings") -> None:
    """Raise Refusal if the database's schema is older than this code."""
    from billing_svc.platform.database import migrating

    if not migrating.is_current(database_url(options)):
        refuse("the database's schema is older than this version: run `billing-svc migrate`")


def database_url(options: "DatabaseSettings") -> str:
    """Return the URL once it is known to be one. Raises SettingsError, which never quotes it."""
    import sqlalchemy as sa

    from billing_svc.platform import settings
    from billing_svc.platform.database import engine

    url = options.database_url.get_secret_value()
    try:
        sa.make_url(url)
    # A password with characters that a URL must escape is read as host and port, and what is no number is quoted.
    except (sa.exc.ArgumentError, ValueError):
        raise settings.SettingsError("DATABASE_URL is not a URL: postgresql://user:password@host:port/name") from None
    try:
        engine.driver_url(url)
    except ValueError as error:
        raise settings.SettingsError(str(error)) from None
    return url


def actor() -> str:
    """Return who runs the command, for the audit log."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "operator:unknown"


def show(message: "Message") -> None:
    """Print a message of the API as JSON, zeros and empty values too."""
    from google.protobuf import json_format

    typer.echo(
        json_format.MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def console() -> "Console":
    """Return the console that tables are printed on; names may hold brackets, so there is no markup."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS, markup=False, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str = "none") -> None:
    """Print a table for people."""
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*row)
    if not shown.row_count:
        typer.echo(f"{title}: {empty}")
        return
    console().print(shown)


def parsed_instant(text: str) -> "datetime":
    """Return the instant that an option names, UTC unless it says otherwise."""
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no instant: 2026-03-31 or 2026-03-31T12:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def shown_instant(value: "Timestamp") -> str:
    """Return an instant for people; empty if it is not set."""
    from datetime import UTC

    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S") if value.seconds else ""
