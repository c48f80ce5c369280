"""Brings a database's schema to this code's version.

All steps run in one transaction under one lock, so that any number of processes may migrate at the same time, and a
failure changes nothing. Schemas only move forward: a schema newer than this code is accepted, because servers of the
last version keep running while a new version is rolled out.
"""

from pathlib import Path

import sqlalchemy as sa

from billing_svc.platform.database import engine, privileges

_MIGRATIONS = Path(__file__).parent / "migrations"
# The key of the advisory lock; any number that no other program uses in this database.
LOCK_KEY = 0x62_69_6C_6C  # "bill"
# How long to wait for another process's migration.
_OTHER_MIGRATION_SECONDS_MAX = 300
# While a migration waits for a table's lock, all other queries of the table queue behind it. So it fails after this
# time, and the operator runs it again.
_TABLE_LOCK_SECONDS_MAX = 5
# Building an index on a big table takes long, and no caller waits for it.
_STATEMENT_SECONDS_MAX = 3_600.0


def upgrade(url: str) -> str:
    """Apply missing migrations and privileges, and return the schema's revision. Raises RolesMissingError."""
    with _connect(url) as connection, connection.begin():
        # SET LOCAL applies to this transaction only, so it also works behind a pooler in transaction mode.
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_OTHER_MIGRATION_SECONDS_MAX}s'"))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_TABLE_LOCK_SECONDS_MAX}s'"))
        revision = _revision(connection)
        if not _is_current(revision):
            _migrate(connection)
            revision = _revision(connection)
        privileges.apply(connection)
        return revision or ""


def current(url: str) -> str | None:
    """Return the revision of the database's schema; None if it was never migrated."""
    with _connect(url) as connection:
        return _revision(connection)


def is_current(url: str) -> bool:
    """Say whether this code may run on the database: the schema's revision is this code's or newer."""
    return _is_current(current(url))


def _is_current(revision: str | None) -> bool:
    # The name of each migration's file begins with its revision; the revisions rise.
    known = sorted(path.name.partition("_")[0] for path in _MIGRATIONS.glob("versions/[0-9]*.py"))
    return revision is not None and (revision == known[-1] or revision not in known)


def _revision(connection: sa.Connection) -> str | None:
    if connection.execute(sa.text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _connect(url: str) -> sa.Connection:
    arguments = engine.connect_arguments(
        url, statement_seconds_max=_STATEMENT_SECONDS_MAX, lock_seconds_max=_TABLE_LOCK_SECONDS_MAX
    )
    # No pool: `close` closes the connection to Postgres.
    return sa.create_engine(
        engine.driver_url(url), connect_args=arguments, poolclass=sa.NullPool, hide_parameters=True
    ).connect()


def _migrate(connection: sa.Connection) -> None:
    # Imported here: a server only reads the revision, and would hold Alembic's 10 MB until its end.
    import alembic.command  # noqa: PLC0415
    import alembic.config  # noqa: PLC0415

    config = alembic.config.Config()
    # A percent sign in the path would start an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
