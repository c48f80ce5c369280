import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import alembic.autogenerate
import alembic.migration
import alembic.script
import psycopg
import pytest
import sqlalchemy as sa

from billing_svc.platform.database import embedded, engine, migrating, tables
from tests import ports

_HEAD = "0014"


def _connect(url: str) -> sa.Connection:
    return sa.create_engine(engine.driver_url(url), poolclass=sa.NullPool).connect()


def _dump(url: str) -> list[str]:
    """Return the schema as Postgres' own statements, without Alembic's table."""
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [
        str(embedded.find_programs() / "pg_dump"),
        "--schema-only",
        "--no-owner",
        "--restrict-key=same",
        "--exclude-table=alembic_version",
        # Not of the tables: test_privileges.py looks at those.
        "--no-privileges",
        "--no-policies",
        "--exclude-table=current_usage",
        "--exclude-schema=readable",
        plain,
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    # The last column of a table has no comma, and which is last may differ.
    return [line.removesuffix(",") for line in lines]


def test_an_empty_database_is_brought_to_the_newest_schema(empty_database_url: str) -> None:
    assert migrating.current(empty_database_url) is None
    assert not migrating.is_current(empty_database_url)
    assert migrating.upgrade(empty_database_url) == _HEAD
    assert migrating.current(empty_database_url) == _HEAD
    assert migrating.is_current(empty_database_url)


def test_migrating_twice_is_harmless(database_url: str) -> None:
    before = _dump(database_url)
    with _connect(database_url) as connection, connection.begin():
        level = {"account_id": "a", "meter": "seats", "level": 3, "opened_until": datetime.now(UTC)}
        connection.execute(sa.insert(tables.gauge_levels).values(level))
    assert migrating.upgrade(database_url) == _HEAD
    assert _dump(database_url) == before
    with _connect(database_url) as connection:
        assert connection.scalar(sa.select(tables.gauge_levels.c.level)) == 3


def test_processes_that_migrate_at_once_wait_for_each_other(empty_database_url: str) -> None:
    """All of them are brought to the lock first, so that they do race."""
    script = "import sys; from billing_svc.platform.database import migrating; print(migrating.upgrade(sys.argv[1]))"
    source = Path(migrating.__file__).parents[3]
    processes = []
    with _connect(empty_database_url) as connection:
        with connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(migrating.LOCK_KEY)))
            for _ in range(3):
                command = [sys.executable, "-c", script, empty_database_url]
                environment = os.environ | {"PYTHONPATH": str(source)}
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            _await_waiting_processes(connection, len(processes))
        outputs = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert outputs == [_HEAD] * 3
    assert [process.returncode for process in processes] == [0] * 3


def _await_waiting_processes(connection: sa.Connection, expected: int) -> None:
    query = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    deadline = time.monotonic() + 20
    while connection.scalar(query) != expected:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_migrations_and_the_tables_agree_for_alembic(database_url: str) -> None:
    with _connect(database_url) as connection:
        context = alembic.migration.MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert alembic.autogenerate.compare_metadata(context, tables.metadata) == []


def test_the_migrations_and_the_tables_agree_to_the_last_constraint(database_url: str, empty_database_url: str) -> None:
    """Alembic does not compare everything; two dumps do. The order of columns is left out."""
    with _connect(empty_database_url) as connection, connection.begin():
        tables.metadata.create_all(connection)
    assert sorted(_dump(database_url)) == sorted(_dump(empty_database_url))


def test_a_newer_schema_is_accepted_and_left_alone(database_url: str) -> None:
    with _connect(database_url) as connection, connection.begin():
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    assert migrating.is_current(database_url)
    assert migrating.upgrade(database_url) == "from_the_future"


def test_a_database_that_is_away_raises_the_driver_s_error() -> None:
    url = f"postgresql://billing:secret@127.0.0.1:{ports.free_port()}/billing"
    with pytest.raises(sa.exc.OperationalError) as caught:
        migrating.current(url)
    assert isinstance(caught.value.orig, psycopg.OperationalError)
    assert "secret" not in str(caught.value)


def test_the_file_of_each_migration_begins_with_its_revision() -> None:
    """By that, and without Alembic, a server knows which revision is its own."""
    folder = Path(migrating.__file__).parent / "migrations"
    scripts = alembic.script.ScriptDirectory(str(folder))
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert sorted(revisions, reverse=True) == revisions
    assert {path.name.partition("_")[0] for path in (folder / "versions").glob("*.py")} == set(revisions)


def test_a_quota_period_under_way_before_its_anchor_stays(database_url: str) -> None:
    """Its months were counted back from the anchor before there was a history (ADR 0019)."""
    folder = Path(migrating.__file__).parent / "migrations"
    scripts = alembic.script.ScriptDirectory(str(folder)).walk_revisions()
    (migration,) = (one.module for one in scripts if one.path.endswith("_subscription_history.py"))
    now = datetime.now(UTC).replace(microsecond=0)
    row = {
        "customer_id": "cus_1",
        "status": "trialing",
        "is_plan": True,
        "plan": "pro",
        "price": "monthly",
        "catalog_version": 1,
        "quantity": 1,
        "cancel_at_period_end": False,
        "updated_at": now,
    }
    rows = []
    for account_id, days, ahead in (("long", 20, 25), ("short", 4, 6), ("paid", 50, -40)):
        since, anchor = now - timedelta(days=days), now + timedelta(days=ahead)
        periods = {"anchor": anchor, "effective_from": since, "billing_period_start": since}
        periods |= {"billing_period_end": anchor, "trial_end": anchor}
        rows.append({**row, **periods, "account_id": account_id, "subscription_id": "sub_1"})
    subscriptions, history = tables.subscriptions.c, tables.subscription_history.c
    with _connect(database_url) as connection, connection.begin():
        for account_id in ("long", "short", "paid"):
            connection.execute(sa.insert(tables.accounts).values(account_id=account_id, created_at=now))
        connection.execute(sa.insert(tables.subscriptions), rows)
        connection.execute(sa.text(migration.KEEP_PERIODS_BEFORE_ANCHORS))
        moved = dict(connection.execute(sa.select(subscriptions.account_id, subscriptions.moved_at)).all())
        kept = connection.execute(sa.select(history.account_id, history.since, history.effective_until)).all()
        until = dict(connection.execute(sa.select(tables.accounts.c.account_id, tables.accounts.c.history_until)).all())
    began = moved["long"]
    assert now - timedelta(days=7) < began < now  # a month before the anchor
    assert moved == {"long": began, "short": None, "paid": None} == until
    assert kept == [("long", now - timedelta(days=20), began)]
