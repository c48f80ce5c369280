"""Fixtures for every test: a real Postgres with a database for each test, and the service before it.

A folder or a module chooses another `catalog_name`, `service_clock` or `stripe_url` by a fixture of that name. Where a
test asks for `sandbox`, or for a fixture that needs it, the service's Stripe is the sandbox.
"""

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

from billing_svc.catalog import versions
from billing_svc.inbox import apply_events
from billing_svc.platform import clock, settings
from billing_svc.platform.database import embedded, migrating, transactions
from billing_svc.platform.database import engine as engines
from billing_svc.stripe import catalog_sync, client
from tests import databases, ports
from tests.acceptance import accounts
from tests.billing_svc import sandboxed, service
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

# Files whose tests start programs without the run's Postgres; those that use it start enough, and `make check` nothing.
_PROCESSES = (
    "tests/end_to_end/",
    "tests/faults/",
    "tests/billing_svc/api/test_secrecy.py",
    "tests/billing_svc/platform/database/test_embedded.py",
    "tests/billing_svc/platform/database/test_transaction_faults.py",
    "tests/billing_svc/programs/",
    "tests/stripe_sandbox/delivery/",
    "tests/webhook_gateway/test_process.py",
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


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a process. In a run of several processes, put first what takes longest; else the order stays."""
    for item in items:
        if item.nodeid.startswith(_PROCESSES) or "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("process")
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


@pytest.fixture
def catalog_name() -> str:
    """The catalog that the server starts with."""
    return "nyqst"


@pytest.fixture
def service_clock() -> clock.Clock:
    """The server's clock."""
    return clock.Clock()


@pytest.fixture
def stripe_url(request: pytest.FixtureRequest) -> str:
    """Where the service calls Stripe; without a sandbox nothing listens there."""
    found: str = request.getfixturevalue("sandbox").url if _has_sandbox(request) else "http://127.0.0.1:9"
    return found


@pytest.fixture(name="settings")
def service_settings(database_url: str, stripe_url: str) -> settings.Settings:
    return settings.Settings.model_validate(
        {
            "DATABASE_URL": database_url,
            "BILLING_LISTEN": "127.0.0.1:0",
            "BILLING_REFLECTION": True,
            "STRIPE_API_KEY": "sk_test_tests",
            "STRIPE_API_BASE": stripe_url,
            "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
            "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
        }
    )


@pytest.fixture
async def published_catalog(
    transactions: transactions.Transactions,
    settings: settings.Settings,
    catalog_name: str,
    request: pytest.FixtureRequest,
) -> int:
    """The catalog's version, as published before the server starts, and brought to the sandbox if the test has one."""
    catalog, now = sandboxed.catalog_of(catalog_name), clock.Clock()
    if not _has_sandbox(request):
        version, _ = await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now.now()))
        return version
    stripe_client = client.Stripe.from_settings(settings)
    applied = await catalog_sync.apply(transactions, stripe_client, catalog, "operator:test", now, lambda _line: None)
    await stripe_client.close()
    return applied.version


@pytest.fixture
async def billing(
    engine: AsyncEngine,
    transactions: transactions.Transactions,
    settings: settings.Settings,
    published_catalog: int,  # noqa: ARG001 - it has to be there first
    service_clock: clock.Clock,
) -> AsyncIterator[service.Billing]:
    """The server in the test's process."""
    async with service.running(engine, transactions, settings, service_clock) as running:
        yield running


@pytest.fixture
def account(billing: service.Billing) -> accounts.Account:
    return accounts.Account(billing, "org_1")


@pytest.fixture
def webhook_port() -> int | None:
    """Where the sandbox sends its events on this machine; None: nowhere."""
    return None


@pytest.fixture
async def sandbox(tmp_path: Path, webhook_port: int | None) -> AsyncIterator[sandboxed.Sandbox]:
    webhook_url = None if webhook_port is None else f"http://127.0.0.1:{webhook_port}/stripe/webhook"
    async with sandboxed.sandbox_running(tmp_path / "stripe.sqlite", webhook_url) as running:
        yield running
        # Promise 6, in whatever a test did: no write without an idempotency key.
        sent = [one for one in await running.writes() if one["path"].startswith("/v1/")]
        assert [one["path"] for one in sent if one["method"] == "POST" and not one["idempotency_key"]] == []


@pytest.fixture
async def stripe_client(
    settings: settings.Settings,
    sandbox: sandboxed.Sandbox,  # noqa: ARG001 - which the settings lead to
) -> AsyncIterator[client.Stripe]:
    made = client.Stripe.from_settings(settings)
    yield made
    await made.close()


@pytest.fixture
async def world(billing: service.Billing, sandbox: sandboxed.Sandbox, stripe_client: client.Stripe) -> sandboxed.World:
    inbox = apply_events.Inbox(billing.transactions, versions.CatalogCache(), stripe_client, billing.clock)
    return sandboxed.World(billing, sandbox, stripe_client, inbox)


def _has_sandbox(request: pytest.FixtureRequest) -> bool:
    return "sandbox" in request.fixturenames


def _database(postgres: embedded.EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    with _administrator(postgres) as connection:
        connection.execute(
            # A copy of the files; the other strategy writes each block to the log, which takes three times as long.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield _url_of(postgres, name)
        databases.drop(connection, name)


def _administrator(postgres: embedded.EmbeddedPostgres) -> psycopg.Connection:
    # What psycopg reads, without SQLAlchemy's name of the driver.
    conninfo = sa.make_url(postgres.start()).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(conninfo, autocommit=True)


def _url_of(postgres: embedded.EmbeddedPostgres, database: str) -> str:
    return sa.make_url(postgres.start()).set(database=database).render_as_string(hide_password=False)
