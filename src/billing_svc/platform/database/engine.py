"""Connections to Postgres: the URL, the session's settings, and the pool."""

import functools
from collections.abc import Generator
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

APPLICATION_NAME = "billing-svc"
# What every connection acts as, whichever login it has: it owns nothing. See privileges.py.
SERVICE_ROLE = "billing_service"

# A server on the same network answers in milliseconds; one that is away is reported while callers still wait.
CONNECT_SECONDS_MAX = 3
# A statement of ours takes milliseconds. Shorter than the transaction's budget, so that Postgres ends it first.
STATEMENT_SECONDS_MAX = 4.0
# Row locks are held for one short transaction; who waits longer meets something stuck.
LOCK_SECONDS_MAX = 2.0
# No transaction of ours waits for anything but Postgres; this frees the locks of a process that froze in one.
IDLE_IN_TRANSACTION_SECONDS_MAX = 10.0
# Batching lets few connections do the work of many calls.
POOL_SIZE = 10
# Past the pool's size, calls queue here and not at Postgres; who waits longer is told UNAVAILABLE.
POOL_WAIT_SECONDS_MAX = 2.0
# Below the idle limits of common proxies and load balancers.
CONNECTION_AGE_SECONDS_MAX = 1_800
# A peer that vanished without a word (a lost host) is noticed after about this long, and not after two hours.
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

    They act as `role`; None: as who they log in as.
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
        # The most recently used connection first: a quiet service lets the others age.
        pool_use_lifo=True,
        # Who closes a connection in the middle of a transaction rolls it back; without one there is nothing to reset.
        pool_reset_on_return=None,
        # Values may be customers' data, and errors reach logs.
        hide_parameters=True,
    )
    engine.sync_engine.dialect.do_terminate = _terminate  # type: ignore[method-assign]  # SQLAlchemy has no event for it
    return engine


def _terminate(dbapi_connection: sa.engine.interfaces.DBAPIConnection) -> None:
    """Close a connection that the pool gives up, because of its age or after an outage.

    Without awaiting: `transactions.py` lends outside of SQLAlchemy's greenlet, where the dialect's own way raises
    MissingGreenlet and leaves the connection open. libpq sends its farewell, closes the socket and does not wait.
    """
    driver: psycopg.AsyncConnection[Any] = dbapi_connection.driver_connection
    driver.pgconn.finish()


class _Connecting:
    """A connection to come, begun when it is awaited and not before: nobody may be there to wait for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the driver's
        self._begin = functools.partial(psycopg.AsyncConnection.connect, *arguments, **options)

    def __await__(self) -> "Generator[Any, None, psycopg.AsyncConnection[Any]]":
        return self._begin().__await__()


def driver_url(url: str) -> sa.URL:
    """Read a DATABASE_URL of any common spelling (`postgres://`, `postgresql://`) as one for psycopg 3."""
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
        # Our statements are few and find their rows by key: one plan each, made once. Left to itself, Postgres plans
        # the decision's seven joins anew each time, which takes five times as long as running them.
        "-c plan_cache_mode=force_generic_plan",
        # Such a plan outlives the day on which a table was small and reading all of it was cheap: these are not for it.
        "-c enable_seqscan=off",
        "-c enable_hashjoin=off",
        "-c enable_mergejoin=off",
        f"-c statement_timeout={_milliseconds(statement_seconds_max)}",
        f"-c lock_timeout={_milliseconds(lock_seconds_max)}",
        f"-c idle_in_transaction_session_timeout={_milliseconds(IDLE_IN_TRANSACTION_SECONDS_MAX)}",
    ]
    if role is not None:
        options.append(f"-c role={role}")
    # These arguments hide the URL's own options, so those are carried on; the last word is theirs.
    own_options = driver_url(url).query.get("options", ())
    options += [own_options] if isinstance(own_options, str) else own_options
    return {
        "application_name": APPLICATION_NAME,
        "connect_timeout": CONNECT_SECONDS_MAX,
        # With each rollback psycopg ends all of the session's prepared statements, direct.py's too, once it has any.
        "prepare_threshold": None,
        "options": " ".join(options),
        "keepalives_idle": PEER_SILENCE_SECONDS_MAX,
        "keepalives_interval": PEER_SILENCE_SECONDS_MAX // 2,
        "keepalives_count": 2,
        "tcp_user_timeout": _milliseconds(PEER_SILENCE_SECONDS_MAX),
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)
