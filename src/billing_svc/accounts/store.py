"""Account rows in Postgres."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import bulk, tables

_INSERT = bulk.insert_missing(tables.accounts, ("account_id", "created_at", "pay_as_you_go"))


async def insert_missing(conn: AsyncConnection, account_ids: Collection[str], now: datetime) -> None:
    """Create accounts that do not exist yet; the first mutation of an account does this."""
    if account_ids:
        rows = [
            {"account_id": account_id, "created_at": now, "pay_as_you_go": False} for account_id in sorted(account_ids)
        ]
        await conn.execute(_INSERT, bulk.to_rows(rows))
