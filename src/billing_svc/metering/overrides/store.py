"""Overrides in Postgres. Decisions read the same table in their own statement (`quota.store`), without a cache."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import terms
from billing_svc.platform.database import select_list, tables

_OVERRIDES = tables.account_overrides


async def find(conn: AsyncConnection, account_id: str, meter: str) -> terms.Override | None:
    """Return the account's override on a meter, even if it has expired; None if there is none."""
    columns = select_list.columns(terms.Override, _OVERRIDES)
    row = (await conn.execute(sa.select(*columns).where(*_is(account_id, meter)))).one_or_none()
    return None if row is None else terms.Override(*row)


async def in_force(conn: AsyncConnection, account_id: str, now: datetime) -> list[tuple[str, terms.Override]]:
    """Return the account's overrides that hold now, by meter."""
    columns = select_list.columns(terms.Override, _OVERRIDES)
    rows = await conn.execute(
        sa.select(_OVERRIDES.c.meter, *columns)
        .where(_OVERRIDES.c.account_id == account_id)
        .where(sa.or_(_OVERRIDES.c.expires_at.is_(None), _OVERRIDES.c.expires_at > now))
        .order_by(_OVERRIDES.c.meter)
    )
    return [(meter, terms.Override(*values)) for meter, *values in rows]


async def save(conn: AsyncConnection, account_id: str, meter: str, override: terms.Override) -> None:
    """Store the account's override on a meter, in place of an earlier override."""
    values = {name: getattr(override, name) for name in select_list.field_names(terms.Override)}
    await conn.execute(
        postgresql.insert(_OVERRIDES)
        .values(account_id=account_id, meter=meter, **values)
        .on_conflict_do_update(index_elements=[_OVERRIDES.c.account_id, _OVERRIDES.c.meter], set_=values)
    )


async def delete(conn: AsyncConnection, account_id: str, meter: str) -> None:
    """Delete the account's override on a meter."""
    await conn.execute(sa.delete(_OVERRIDES).where(*_is(account_id, meter)))


async def lock_account(conn: AsyncConnection, account_id: str) -> None:
    """Lock the account, so that its overrides change in one transaction at a time."""
    account = tables.accounts.c.account_id
    await conn.execute(sa.select(account).where(account == account_id).with_for_update())


def _is(account_id: str, meter: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_OVERRIDES.c.account_id == account_id, _OVERRIDES.c.meter == meter)
