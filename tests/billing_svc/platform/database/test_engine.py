import asyncio
import logging

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:pa%40ss@db.internal:5433/billing?sslmode=require",
        "postgresql://user:pa%40ss@db.internal:5433/billing?sslmode=require",
        "postgresql+psycopg://user:pa%40ss@db.internal:5433/billing?sslmode=require",
        "postgresql+asyncpg://user:pa%40ss@db.internal:5433/billing?sslmode=require",
    ],
)
def test_every_spelling_of_a_postgres_url_is_read_as_psycopg_s(url: str) -> None:
    parsed = engines.driver_url(url)
    expected = "postgresql+psycopg://user:pa%40ss@db.internal:5433/billing?sslmode=require"
    assert parsed.render_as_string(hide_password=False) == expected


def test_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        engines.driver_url("mysql://user@host/billing")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("TimeZone", "UTC"),
        ("application_name", "billing-svc"),
        ("statement_timeout", "4s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("transaction_isolation", "read committed"),
    ],
)
async def test_every_session_has_its_settings(database_url: str, setting: str, value: str) -> None:
    engine = engines.create_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text(f"SHOW {setting}")) == value
    await engine.dispose()


async def test_options_of_the_url_are_kept_and_win(database_url: str) -> None:
    url = f"{database_url}?options=-c%20statement_timeout%3D7000%20-c%20work_mem%3D8MB"
    engine = engines.create_engine(url)
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("SHOW statement_timeout")) == "7s"
        assert await connection.scalar(sa.text("SHOW work_mem")) == "8MB"
        assert await connection.scalar(sa.text("SHOW TimeZone")) == "UTC"
    await engine.dispose()


async def test_a_connection_that_reaches_its_age_is_closed_and_replaced(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy's pool logged MissingGreenlet and left the session open, since the lender is outside its greenlet."""
    monkeypatch.setattr(engines, "CONNECTION_AGE_SECONDS_MAX", 1)
    engine = engines.create_engine(database_url, pool_size=1, role=None)
    runner = transactions.Transactions(engine)

    async def backend(connection: AsyncConnection) -> int:
        return int(await connection.scalar(sa.text("SELECT pg_backend_pid()")))

    async def is_open(connection: AsyncConnection) -> bool:
        seen = await connection.scalar(sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": old})
        return bool(seen)

    old = await runner.run(backend)
    assert await runner.run(backend) == old
    await asyncio.sleep(1.1)
    with caplog.at_level(logging.WARNING):
        assert await runner.run(backend) != old
    assert caplog.messages == []
    async with asyncio.timeout(5):
        while await runner.run(is_open):
            pass  # each round is a query
    await engine.dispose()
