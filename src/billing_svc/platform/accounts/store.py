"""Account rows in Postgres."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import rules
from billing_svc.platform.database import bulk, direct, select_list, tables

_ACCOUNTS = tables.accounts
_COLUMNS = ("account_id", "created_at")
_INSERT = direct.PreparedStatement(bulk.insert(tables.accounts, _COLUMNS))
_INSERT_MISSING = bulk.insert_missing(tables.accounts, _COLUMNS)

# Rows are locked in key order, so that two processes cannot deadlock.
_LOCK_SHARED = sa.text("""
    SELECT 1
      FROM accounts a
     WHERE a.account_id IN (SELECT * FROM unnest(CAST(:account_ids AS text[])))
     ORDER BY a.account_id
       FOR SHARE OF a
""")


# As above; it only excludes others that lock, and not rows that refer to the account.
_LOCK = direct.PreparedStatement(f"""
    SELECT a.account_id
      FROM {bulk.arrays("asked", "account_id text")}
     CROSS JOIN LATERAL (
           SELECT account_id FROM accounts WHERE account_id = asked.account_id FOR NO KEY UPDATE
           ) AS a
""")  # noqa: S608 - constants of this file


def locking(account_ids: Collection[str]) -> direct.Call:
    """Return the call that locks accounts that exist until the end of the transaction; before all other locks."""
    return _LOCK, bulk.to_arrays(("account_id",), [(account_id,) for account_id in sorted(account_ids)])


async def insert_missing(conn: AsyncConnection, account_ids: Collection[str], now: datetime) -> None:
    """Create accounts that do not exist yet; the first mutation of an account does this."""
    if account_ids:
        rows = [{"account_id": account_id, "created_at": rules.signup(now)} for account_id in sorted(account_ids)]
        await conn.execute(_INSERT_MISSING, bulk.to_rows(rows))


def creation(account_ids: Collection[str], now: datetime) -> direct.Call:
    """Return the statement that creates accounts; it fails if an account exists already."""
    return _INSERT, bulk.to_columns(_COLUMNS, [(account_id, rules.signup(now)) for account_id in sorted(account_ids)])


@dataclass(frozen=True, slots=True)
class Account:
    """An account as stored."""

    account_id: str
    created_at: datetime
    customer_id: str | None


_SELECT = sa.select(*select_list.columns(Account, _ACCOUNTS))


async def find(conn: AsyncConnection, account_id: str) -> Account | None:
    """Return an account; None before its first mutation."""
    row = (await conn.execute(_SELECT.where(_ACCOUNTS.c.account_id == account_id))).one_or_none()
    return None if row is None else Account(*row)


async def list_accounts(conn: AsyncConnection, prefix: str, after: str, most: int) -> list[Account]:
    """Return accounts whose id begins with `prefix` and sorts after `after`, ordered by id; at most `most`."""
    account_id = _ACCOUNTS.c.account_id
    query = _SELECT.where(account_id > after, sa.func.starts_with(account_id, prefix)).order_by(account_id).limit(most)
    return [Account(*row) for row in await conn.execute(query)]


async def lock_shared(conn: AsyncConnection, account_ids: Collection[str]) -> None:
    """Lock accounts against a change until the end of the transaction. Call this before taking any other lock."""
    await conn.execute(_LOCK_SHARED, {"account_ids": list(account_ids)})


async def customer_of(conn: AsyncConnection, account_id: str) -> str | None:
    """Return the account's customer at Stripe; None if it has none."""
    query = sa.select(_ACCOUNTS.c.customer_id).where(_ACCOUNTS.c.account_id == account_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def set_customer(conn: AsyncConnection, account_id: str, customer_id: str) -> bool:
    """Give an account its customer at Stripe; returns whether it had none before. The first one stays."""
    linked = await conn.execute(
        sa.update(_ACCOUNTS)
        .where(_ACCOUNTS.c.account_id == account_id, _ACCOUNTS.c.customer_id.is_(None))
        .values(customer_id=customer_id)
    )
    return linked.rowcount == 1


async def clear_customer(conn: AsyncConnection, account_id: str, customer_id: str) -> bool:
    """Take an account's customer from it; returns whether that was its present one."""
    cleared = await conn.execute(
        sa.update(_ACCOUNTS)
        .where(_ACCOUNTS.c.account_id == account_id, _ACCOUNTS.c.customer_id == customer_id)
        .values(customer_id=None)
    )
    return cleared.rowcount == 1


async def pay_as_you_go_under(conn: AsyncConnection, account_id: str) -> str | None:
    """Return the subscription under which pay-as-you-go was switched on; None if it is off."""
    query = sa.select(_ACCOUNTS.c.pay_as_you_go_under).where(_ACCOUNTS.c.account_id == account_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def set_pay_as_you_go(conn: AsyncConnection, account_id: str, under: str | None) -> bool:
    """Switch pay-as-you-go on under a subscription, or off; returns whether that changed anything."""
    changed = await conn.execute(
        sa.update(_ACCOUNTS)
        .where(_ACCOUNTS.c.account_id == account_id, _ACCOUNTS.c.pay_as_you_go_under.is_distinct_from(under))
        .values(pay_as_you_go_under=under)
    )
    return changed.rowcount == 1


async def lock(conn: AsyncConnection, account_id: str) -> None:
    """Lock the account's row until the end of the transaction: changes of its subscriptions run one after another."""
    query = sa.select(_ACCOUNTS.c.account_id).where(_ACCOUNTS.c.account_id == account_id)
    await conn.execute(query.with_for_update())


async def extend_history(conn: AsyncConnection, account_id: str, until: datetime) -> None:
    """Note that a past stretch of one of the account's subscriptions ended at `until`."""
    latest = sa.func.greatest(_ACCOUNTS.c.history_until, until)  # ignores null
    await conn.execute(sa.update(_ACCOUNTS).where(_ACCOUNTS.c.account_id == account_id).values(history_until=latest))
