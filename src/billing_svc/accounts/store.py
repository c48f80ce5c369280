"""Account rows in Postgres."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import tables


async def insert_missing(conn: AsyncConnection, account_ids: Collection[str], now: datetime) -> None:
    """Create accounts that do not exist yet; the first mutation of an account does this."""
    if account_ids:
        await conn.execute(
            postgresql.insert(tables.accounts).on_conflict_do_nothing(),
            [{"account_id": account_id, "created_at": now} for account_id in sorted(account_ids)],
        )
