"""Fixtures for every test: a real Postgres, and a database of its own for each test that asks for one."""

import asyncio
import os
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType

import psycopg
import pytest
import sqlalchemy as sa
import stripe
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine
from xdist import scheduler  # type: ignore[import-untyped]  # it has none

from billing_svc.platform import settings
from billing_svc.platform.database import embedded, migrating, transactions
from billing_svc.platform.database import engine as engines
from tests import databases, ports
from webhook_gateway import settings as gateway_settings

# Generous for a busy machine; a test that needs longer is stuck.
_DRAIN_SECONDS_MAX = 20

# In a run of several processes: those that take longest begin first, so that none is left alone with one at the end.
_FIRST = (
    "tests/end_to_end/test_month.py",
    "tests/end_to_end/test_dev.py",
    "tests/end_to_end/",
    "tests/properties/test_counting.py",
    "tests/billing_svc/usage_export/test_whole_way.py",
    "tests/faults/",
    "tests/billing_svc/programs/commands/",
    "tests/billing_svc/money/",
)
# Files whose tests share what takes long to start; they stay together.
_TOGETHER = (
    "tests/end_to_end/",
    "tests/webhook_gateway/",
    "tests/billing/",
    "tests/billing_svc/platform/database/test_transaction_faults.py",
)


def pytest_configure() -> None:
    """Let SIGTERM end a run as Ctrl-C does, so that fixtures clean up (`timeout` sends it), and forget settings."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell that has read `.dev/environment` would pass on the settings of `make dev`. The transport is the run's own.
    for name in _settings() - {"BILLING_TRANSPORT"}:
        os.environ.pop(name, None)
    # Some tests use the SDK by itself; it would write into the home directory.
    stripe.enable_telemetry = False
    # Half a second and more before each repetition would be most of what tests of Stripe's faults take.
    stripe.HTTPClient.INITIAL_DELAY = 0.01


def _settings() -> set[str]:
    """Return the names of all variables that the programs under test read."""
    gateway = gateway_settings._Environment.model_fields.values()  # noqa: SLF001 - the names are nowhere else
    service = {str(field.alias) for field in settings.Settings.model_fields.values()}
    return service | {str(field.validation_alias) for field in gateway} | {"STRIPE_SANDBOX_WEBHOOK_SECRET"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a run of several processes, put first what takes longest; else the order stays."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: next((n for n, one in enumerate(_FIRST) if item.nodeid.startswith(one)), len(_FIRST))
        )


class _Scheduling(scheduler.LoadScopeScheduling):  # type: ignore[misc]  # untyped, as above
    """Gives each process the next test, or the next file of those that stay together."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Scheduling:
    # Not xdist's own groups: it puts their names into ids, which pytest 9.2 does not let it.
    return _Scheduling(config, log)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """A folder for the run's server. Not pytest's: those stay behind, and keep the server's user out."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def postgres(postgres_folder: Path) -> Iterator[embedded.EmbeddedPostgres]:
    """The run's server. Tests that stop or harm one start their own."""
    with embedded.EmbeddedPostgres(postgres_folder / "postgres", ports.free_port(), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: embedded.EmbeddedPostgres) -> str:
    """A migrated database that each test clones; nobody connects to it."""
    name = "template_migrated"
    with _administrator(postgres) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrating.upgrade(_url_of(postgres, name))
    return name


@pytest.fixture
def empty_database_url(postgres: embedded.EmbeddedPostgres) -> Iterator[str]:
    """A database without a schema."""
    yield from _database(postgres, "template1")


@pytest.fixture
def database_url(postgres: embedded.EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    yield from _database(postgres, template_database)


@pytest.fixture(name="engine")
async def database_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine in the test's event loop that may do anything: it acts as the owner of the tables."""
    test_engine = engines.create_engine(database_url, role=None)
    yield test_engine
    await test_engine.dispose()


@pytest.fixture(name="transactions")
async def database_transactions(database_url: str) -> AsyncIterator[transactions.Transactions]:
    """The service's way to run transactions, with its rights, on the test's database."""
    service_engine = engines.create_engine(database_url)
    runner = transactions.Transactions(service_engine, keep=True)
    yield runner
    async with asyncio.timeout(_DRAIN_SECONDS_MAX):
        await runner.drain()
    await service_engine.dispose()


def _database(postgres: embedded.EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    with _administrator(postgres) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        yield _url_of(postgres, name)
        databases.drop(connection, name)


def _administrator(postgres: embedded.EmbeddedPostgres) -> psycopg.Connection:
    # What psycopg reads, without SQLAlchemy's name of the driver.
    conninfo = sa.make_url(postgres.start()).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(conninfo, autocommit=True)


def _url_of(postgres: embedded.EmbeddedPostgres, database: str) -> str:
    return sa.make_url(postgres.start()).set(database=database).render_as_string(hide_password=False)
