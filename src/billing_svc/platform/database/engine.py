"""Connections to Postgres: the URL, the session's settings, and the pool."""

import functools
from collections.abc import Generator
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

APPLICATION_NAME = "billing-svc"
# The role that every connection acts as, whatever its login. The role owns nothing; see privileges.py.
SERVICE_ROLE = "billing_service"

# Postgres on the same network answers in milliseconds. If it is away, callers get the error before their deadline.
CONNECT_SECONDS_MAX = 3
# Our statements take milliseconds. Shorter than the transaction's budget, so that Postgres ends the statement first.
STATEMENT_SECONDS_MAX = 4.0
# A row lock is held for a short transaction; after a longer wait the holder is probably stuck.
LOCK_SECONDS_MAX = 2.0
# Our transactions wait for nothing but Postgres. This bound frees the locks of a process that froze in a transaction.
IDLE_IN_TRANSACTION_SECONDS_MAX = 10.0
# Batching makes a few connections enough for many calls.
POOL_SIZE = 10
# If all connections are in use, calls queue here and not at Postgres; after this time they get UNAVAILABLE.
POOL_WAIT_SECONDS_MAX = 2.0
# Below the idle limits of common proxies and load balancers.
CONNECTION_AGE_SECONDS_MAX = 1_800
# A peer that vanished without closing the connection (a lost host) is noticed after about this time, not two hours.
PEER_SILENCE_SECONDS_MAX = 10


def create_engine(
    url: str,
    *,
    pool_size: int = POOL_SIZE,
    statement_seconds_max: float = STATEMENT_SECONDS_MAX,
    lock_seconds_max: float = LOCK_SECONDS_MAX,
    role: str | None = SERVICE_ROLE,
) -> AsyncEngine:
    """Return an engine with a pool of `pool_size` connections, each opened when it is first needed.

    The connections act as `role`; with None, as their login.
    """
    engine = create_async_engine(
        driver_url(url),
        connect_args={
            **connect_arguments(
                url,
                statement_seconds_max=statement_seconds_max,
                lock_seconds_max=lock_seconds_max,
                role=role,
            ),
            "async_creator_fn": _Connecting,
        },
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS_MAX,
        pool_recycle=CONNECTION_AGE_SECONDS_MAX,
        # The most recently used connection first, so that unused connections reach their maximum age.
        pool_use_lifo=True,
        # Closing a connection in a transaction rolls it back; outside of a transaction there is nothing to reset.
        pool_reset_on_return=None,
        # Values may be customers' data, and errors reach logs.
        hide_parameters=True,
    )
    engine.sync_engine.dialect.do_terminate = _terminate  # type: ignore[method-assign]  # SQLAlchemy has no event for it
    return engine


def _terminate(dbapi_connection: sa.engine.interfaces.DBAPIConnection) -> None:
    """Close a connection that the pool gives up, because of its age or after an outage.

    This must not await: `transactions.py` takes connections outside of SQLAlchemy's greenlet, where the dialect's own
    function raises MissingGreenlet and leaves the connection open. libpq sends Terminate, closes the socket and does
    not wait.
    """
    driver: psycopg.AsyncConnection[Any] = dbapi_connection.driver_connection
    driver.pgconn.finish()


class _Connecting:
    """A connection that is opened only when it is awaited, so that it is not left open if nothing awaits it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the driver's
        self._begin = functools.partial(psycopg.AsyncConnection.connect, *arguments, **options)

    def __await__(self) -> "Generator[Any, None, psycopg.AsyncConnection[Any]]":
        return self._begin().__await__()


def driver_url(url: str) -> sa.URL:
    """Return a DATABASE_URL (`postgres://` or `postgresql://`) as a SQLAlchemy URL for psycopg 3."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() not in {"postgres", "postgresql"}:
        raise ValueError("DATABASE_URL does not name a PostgreSQL database: it must begin with postgresql://")
    return parsed.set(drivername="postgresql+psycopg")


def connect_arguments(
    url: str, *, statement_seconds_max: float, lock_seconds_max: float, role: str | None = None
) -> dict[str, str | int | None]:
    """Return psycopg's arguments that give every session its name, time zone, time limits and role."""
    options = [
        "-c TimeZone=UTC",
        # Our statements are few and find their rows by key, so each gets a generic plan, made once. Without this,
        # Postgres plans the decision's seven joins at every execution, which takes five times as long as running them.
        "-c plan_cache_mode=force_generic_plan",
        # A generic plan made while a table is small would scan the whole table, and be used after the table has grown.
        "-c enable_seqscan=off",
        "-c enable_hashjoin=off",
        "-c enable_mergejoin=off",
        f"-c statement_timeout={_milliseconds(statement_seconds_max)}",
        f"-c lock_timeout={_milliseconds(lock_seconds_max)}",
        f"-c idle_in_transaction_session_timeout={_milliseconds(IDLE_IN_TRANSACTION_SECONDS_MAX)}",
    ]
    if role is not None:
        options.append(f"-c role={role}")
    # These arguments replace the URL's own options, so the URL's options are appended; they come last and win.
    own_options = driver_url(url).query.get("options", ())
    options += [own_options] if isinstance(own_options, str) else own_options
    return {
        "application_name": APPLICATION_NAME,
        "connect_timeout": CONNECT_SECONDS_MAX,
        # If psycopg itself prepared statements, a rollback would deallocate all of the session's, direct.py's too.
        "prepare_threshold": None,
        "options": " ".join(options),
        "keepalives_idle": PEER_SILENCE_SECONDS_MAX,
        "keepalives_interval": PEER_SILENCE_SECONDS_MAX // 2,
        "keepalives_count": 2,
        "tcp_user_timeout": _milliseconds(PEER_SILENCE_SECONDS_MAX),
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)
