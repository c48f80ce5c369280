"""Account rows in Postgres."""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import bulk, tables

_INSERT = bulk.insert_missing(tables.accounts, ("account_id", "created_at", "pay_as_you_go"))

# In key order, so that processes cannot deadlock.
_LOCK_SHARED = sa.text("""
    SELECT 1
      FROM accounts a
     WHERE a.account_id IN (SELECT * FROM unnest(CAST(:account_ids AS text[])))
     ORDER BY a.account_id
       FOR SHARE OF a
""")


async def insert_missing(conn: AsyncConnection, account_ids: Collection[str], now: datetime) -> None:
    """Create accounts that do not exist yet; the first mutation of an account does this."""
    if account_ids:
        rows = [
            {"account_id": account_id, "created_at": now, "pay_as_you_go": False} for account_id in sorted(account_ids)
        ]
        await conn.execute(_INSERT, bulk.to_rows(rows))


async def lock_shared(conn: AsyncConnection, account_ids: Collection[str]) -> None:
    """Keep accounts from being locked for a change until the end of the transaction; before all other locks."""
    await conn.execute(_LOCK_SHARED, {"account_ids": list(account_ids)})
