"""Brings a database's schema to this code's version.

All steps run in one transaction under one lock, so that any number of processes may migrate at once, and a failure in
the middle changes nothing. Schemas only move forward: a newer one than this code knows is accepted, as servers of the
last version go on while a new one is rolled out.
"""

from pathlib import Path

import sqlalchemy as sa

from billing_svc.platform.database import engine, privileges

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that nothing else in the database takes for an advisory lock.
LOCK_KEY = 0x62_69_6C_6C  # "bill"
# Another process that migrates may be at it for a while.
_OTHER_MIGRATION_SECONDS_MAX = 300
# Behind a table lock that we wait for, every other query of that table queues: give up soon, and be run again.
_TABLE_LOCK_SECONDS_MAX = 5
# Building an index on a big table takes its time; nothing waits for its answer.
_STATEMENT_SECONDS_MAX = 3_600.0


def upgrade(url: str) -> str:
    """Apply what is missing of migrations and privileges; returns the schema's revision. Raises RolesMissingError."""
    with _connect(url) as connection, connection.begin():
        # For this transaction only, so that it also works behind a pooler that hands out sessions by transaction.
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
    """Return the revision of the database's schema, or None where nothing was ever migrated."""
    with _connect(url) as connection:
        return _revision(connection)


def is_current(url: str) -> bool:
    """Tell whether this code may run on the database: its schema is this code's, or a newer one."""
    return _is_current(current(url))


def _is_current(revision: str | None) -> bool:
    # Each migration's file begins with its revision, and they follow each other in that order.
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
    # No pool: closing the connection is the end of it.
    return sa.create_engine(
        engine.driver_url(url), connect_args=arguments, poolclass=sa.NullPool, hide_parameters=True
    ).connect()


def _migrate(connection: sa.Connection) -> None:
    # Here, because a server asks for the revision alone and would hold Alembic's 10 MB for good.
    import alembic.command  # noqa: PLC0415
    import alembic.config  # noqa: PLC0415

    config = alembic.config.Config()
    # A percent sign in the path would begin an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
