"""The test stand: a durable Postgres, databases with accounts and stored events, and servers."""

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without type hints
import psycopg
import sqlalchemy as sa
from psycopg import sql

from benchmarks import programs, traffic
from billing_svc.catalog import loading, versions
from billing_svc.metering.quota import periods
from billing_svc.platform.database import embedded, engine, migrating, transactions

# docs/operations.md recommends these for a Postgres with many writes. With the defaults (128 MB of buffers, 1 GB of WAL
# between checkpoints) and ten million stored events, nearly each record writes a whole page to the WAL.
_SETTINGS = {"max_wal_size": "16GB", "checkpoint_timeout": "30min"}
# Events are stored in steps, to show progress and to keep transactions short.
_EVENTS_PER_STEP = 500_000
# When the subscriptions began: so that now is in the middle of a quota period.
_SUBSCRIBED = timedelta(days=10)

# Every account is subscribed, so that each decision reads as much as a decision can read.
_ACCOUNTS = """
    CREATE TEMPORARY TABLE known ON COMMIT DROP AS
        SELECT 'org_' || n AS account_id FROM generate_series(0, %(accounts)s - 1) AS n
         UNION ALL SELECT %(hot)s;
    INSERT INTO accounts (account_id, created_at) SELECT account_id, %(anchor)s FROM known;
    INSERT INTO subscriptions (account_id, subscription_id, customer_id, status, plan, price, catalog_version, is_plan,
                               quantity, anchor, billing_period_start, billing_period_end, cancel_at_period_end,
                               effective_from, updated_at)
    SELECT account_id, 'sub_' || account_id, 'cus_' || account_id, 'active', %(plan)s, 'monthly', 1, true,
           1, %(anchor)s, %(anchor)s, %(ends)s, false, %(anchor)s, %(anchor)s
      FROM known;
    INSERT INTO usage_counters (account_id, meter, period_start, period_end, used, catalog_version, plan,
                                subscription_id, quantity, pay_as_you_go, included, overridden, updated_at)
    SELECT account_id, %(meter)s, %(anchor)s, %(ends)s, 2, 1, %(plan)s,
           'sub_' || account_id, 1, false, %(included)s, false, %(anchor)s
      FROM known;
"""

# The events of an account are stored together, in the order of the primary key.
_EVENTS = """
    INSERT INTO usage_events (account_id, event_id, sent_meter, sent_quantity, properties, meter, period_start, units,
                              billable, occurred_at, recorded_at, caller, request_id, period_end, plan,
                              catalog_version, used_after, reserved_after, billable_after, remaining_after, included,
                              overridden, reason)
    SELECT 'org_' || (n / %(each)s), md5(n::text), 'runs', 1, '{}', 'runs', %(anchor)s, 1,
           0, %(anchor)s, %(anchor)s, 'bench', md5((-n)::text), %(ends)s, 'pro',
           1, 2, 0, 0, 198, 200,
           false, 'NONE'
      FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""


class Stand:
    """A Postgres in a temporary folder."""

    def __init__(self, folder: Path, postgres: embedded.EmbeddedPostgres, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._postgres = postgres
        self._url = postgres.start()
        self._say = say

    def postgres_cpu_seconds(self) -> float:
        """Return the CPU time that Postgres has used so far."""
        assert self._postgres.pid is not None
        return programs.cpu_seconds(self._postgres.pid)

    def postgres_version(self) -> str:
        """Return the server's version."""
        with psycopg.connect(self.conninfo("billing")) as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]

    def url(self, database: str) -> str:
        """Return the URL that `serve` and SQLAlchemy connect to."""
        return sa.make_url(self._url).set(database=database).render_as_string(hide_password=False)

    def conninfo(self, database: str) -> str:
        """Return the connection string for psycopg."""
        return sa.make_url(self.url(database)).set(drivername="postgresql").render_as_string(hide_password=False)

    def create(self, database: str, template: str = "template1") -> None:
        """Create a database, empty or a copy of another."""
        with psycopg.connect(self.conninfo("billing"), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(database), sql.Identifier(template)))

    def create_catalog(self, database: str, plan: str, meter: str) -> None:
        """Create a database with the catalog of the same name, and accounts that are subscribed to a plan."""
        self._say(f"{database}: schema, catalog, {traffic.ACCOUNTS:,} accounts on {plan}")
        self.create(database)
        migrating.upgrade(self.url(database))
        catalog = loading.load_file(programs.ROOT / "catalogs" / f"{database}.yaml")
        now = datetime.now(UTC)

        async def publish() -> None:
            pool = engine.create_engine(self.url(database))
            await transactions.Transactions(pool).run(lambda conn: versions.publish(conn, catalog, "benchmark", now))
            await pool.dispose()

        asyncio.run(publish())
        period = _period(now)
        values = {
            "accounts": traffic.ACCOUNTS,
            "hot": traffic.HOT_ACCOUNT,
            "anchor": period.start,
            "ends": period.end,
            "plan": plan,
            "meter": meter,
            "included": catalog.plan(plan).limits[meter].included,
        }
        with psycopg.connect(self.conninfo(database), cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute(_ACCOUNTS, values)
        self._settle(database)

    def store_events(self, database: str, events: int) -> None:
        """Store events for the accounts."""
        each = -(-events // traffic.ACCOUNTS)
        period = _period(datetime.now(UTC))
        began = time.monotonic()
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            for first in range(0, events, _EVENTS_PER_STEP):
                last = min(first + _EVENTS_PER_STEP, events) - 1
                values = {"each": each, "first": first, "last": last, "anchor": period.start, "ends": period.end}
                connection.execute(_EVENTS, values)
                self._say(f"{database}: {last + 1:,} of {events:,} events, {time.monotonic() - began:.0f} s")
        self._settle(database)

    def warm(self, database: str) -> None:
        """Read what decisions read, so that it is in memory, as it is for a service that has run for a while."""
        with psycopg.connect(self.conninfo(database)) as connection:
            connection.execute("SET enable_seqscan = off")
            for table in ("accounts", "subscriptions", "usage_counters"):
                every = sql.SQL("SELECT count(every.*) FROM (SELECT * FROM {} ORDER BY account_id) AS every")
                connection.execute(every.format(sql.Identifier(table)))

    def serve(self, name: str, database: str, transport: str = "fast") -> programs.Server:
        """Start `billing-svc serve` with one process, as in production: all interceptors, and the log in a file."""
        env = programs.environment(
            BILLING_DEV="1",
            BILLING_LISTEN="{address}",
            BILLING_TRANSPORT=transport,
            DATABASE_URL=self.url(database),
            STRIPE_API_KEY="sk_test_benchmark",
            STRIPE_API_BASE="http://127.0.0.1:9",
            BILLING_CHECKOUT_SUCCESS_URL="http://localhost/success",
            BILLING_CHECKOUT_CANCEL_URL="http://localhost/cancel",
        )
        return programs.Server(name, ["-m", "billing_svc", "serve"], env, self.folder)

    def echo(self) -> programs.Server:
        """Start the bare echo."""
        return programs.Server("echo", ["-m", "benchmarks.echo", "{address}"], programs.environment(), self.folder)

    def naive(self, database: str) -> programs.Server:
        """Start the hand-written service."""
        arguments = ["-m", "benchmarks.naive", "{address}", self.url(database)]
        return programs.Server("naive", arguments, programs.environment(), self.folder)

    def _settle(self, database: str) -> None:
        # No autovacuum may begin in the middle of a round.
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")


@contextlib.contextmanager
def stand(say: Callable[[str], None]) -> Iterator[Stand]:
    """Run a Postgres with fsync in a folder that is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"billing-svc-bench-{secrets.token_hex(4)}-"))
    try:
        folder.chmod(0o711)  # started by root, Postgres runs as another user, who needs to pass through
        say("starting Postgres, fsync on")
        settings = {**_SETTINGS, "shared_buffers": f"{psutil.virtual_memory().total // 4 // 2**20}MB"}
        with embedded.EmbeddedPostgres(folder / "postgres", embedded.free_port(), settings=settings) as postgres:
            yield Stand(folder, postgres, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _period(now: datetime) -> periods.Period:
    anchor = now.replace(hour=0, minute=0, second=0, microsecond=0) - _SUBSCRIBED
    return periods.anchored_month(anchor, now)
