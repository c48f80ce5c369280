"""Functions that the commands share: running work on the database, refusing, and printing results."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

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
    from rich.console import Console
    from rich.progress import Progress

    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions
    from billing_svc.platform.settings import DatabaseSettings

# The width of tables that are not printed to a terminal; the default of 80 columns would wrap them.
_PIPED_COLUMNS = 200

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class Refusal(Exception):
    """The command cannot be carried out; the message tells the user what to do."""


class Failed(Exception):
    """A command failed whose exit status tells failures apart; `__cause__` is what went wrong."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


@contextlib.contextmanager
def failing_with(code: int) -> Iterator[None]:
    """Give every failure inside this exit status, also a defect of ours."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        raise Failed(code) from error


def refuse(sentence: str) -> Never:
    """Raise a Refusal; its sentence is printed to stderr."""
    raise Refusal(sentence)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in an event loop, uvloop's if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def on_database(work: "Callable[[Transactions, Clock], Awaitable[T]]") -> T:
    """Run work that needs only DATABASE_URL. Raises Refusal if the schema is older than this code."""
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
    """Return DATABASE_URL if it is a URL. Raises SettingsError, whose message never quotes the value."""
    import sqlalchemy as sa

    from billing_svc.platform import settings
    from billing_svc.platform.database import engine

    url = options.database_url.get_secret_value()
    try:
        sa.make_url(url)
    # A password with unescaped characters is parsed as host and port; the error would quote it as an invalid port.
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
    from billing_svc.api import shown

    typer.echo(shown.to_json(message))


class Bar:
    """A progress bar with counts; shows nothing without a terminal."""

    def __init__(self, progress: "Progress | None", what: str, unit: str) -> None:
        self._progress = progress
        self._unit = unit
        self._task = None if progress is None else progress.add_task(what, total=None, unit=unit)

    def show(self, done: int, total: int) -> None:
        """Show how much is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def pause(self) -> None:
        """Stop drawing, so that a question can be asked."""
        if self._progress is not None:
            self._progress.stop()


@contextlib.contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Bar]:
    """Show on a terminal how much of some work is done; show nothing elsewhere."""
    if not sys.stderr.isatty():
        yield Bar(None, what, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, what, unit)


def console() -> "Console":
    """Return the console for tables. Names may contain brackets, so markup is off."""
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
    """Return the instant of an option; without an offset it is in UTC."""
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an instant, such as 2026-03-31 or 2026-03-31T12:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
