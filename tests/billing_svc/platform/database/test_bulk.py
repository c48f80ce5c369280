"""Values that travel in arrays arrive as they were, whatever they hold."""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import bulk, direct, tables
from billing_svc.platform.database import transactions as runners

_COLUMNS = ("t", "i", "b", "d", "j")
_ECHO = direct.Statement(
    f"SELECT * FROM {bulk.arrays('one', 't text, i bigint, b boolean, d timestamptz, j jsonb')}"  # noqa: S608
)
_ACCOUNTS = direct.Statement(bulk.insert(tables.accounts, ("account_id", "created_at", "customer_id")))
_AT = datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC)


async def test_arrays_keep_every_value(transactions: runners.Transactions) -> None:
    hostile = ['"', "\\", '\\"', "{a,b}", "null", "NULL", "", " ", "a,b", "größer\n\t\r\b\f\x01\u2028", "\\n", "'"]
    rows = [(text, n - 2, n % 2 == 0, _AT, {"key": text, text: n}) for n, text in enumerate(hostile)]
    rows.append((None, None, None, None, None))  # type: ignore[arg-type]
    read = await transactions.read(lambda conn: direct.fetch(conn, _ECHO, bulk.to_arrays(_COLUMNS, rows)))
    assert read == rows
    none = await transactions.read(lambda conn: direct.fetch(conn, _ECHO, bulk.to_arrays(_COLUMNS, [])))
    assert none == []


async def test_what_rows_share_is_in_each_of_them(transactions: runners.Transactions) -> None:
    rows = [("org_1", _AT, None), ("org_2", _AT, None), ("org_3", _AT, None)]

    async def work(conn: AsyncConnection) -> list[tuple[object, ...]]:
        await direct.fetch(conn, _ACCOUNTS, bulk.to_columns(("account_id", "created_at", "customer_id"), rows))
        accounts = tables.accounts.c
        query = sa.select(accounts.account_id, accounts.created_at, accounts.customer_id).order_by(accounts.account_id)
        return [tuple(row) for row in await conn.execute(query)]

    assert await transactions.run(work) == rows
