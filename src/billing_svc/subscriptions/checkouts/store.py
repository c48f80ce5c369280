"""Checkout pages in Postgres. A unique index allows an account at most one open page."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables, transactions

_CHECKOUTS = tables.checkouts
_OPEN = ("opening", "open")


@dataclass(frozen=True, slots=True)
class CheckoutOrder:
    """What to sell, and where the customer is sent afterwards."""

    account_id: str
    plan: str
    price: str
    quantity: int
    success_url: str
    cancel_url: str
    customer_email: str
    request_id: str = ""

    @property
    def content(self) -> Mapping[str, object]:
        """The fields that must be equal in a repeat with the same request id."""
        names = ("plan", "price", "quantity", "success_url", "cancel_url", "customer_email")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class CheckoutPage:
    """A checkout page as stored; it has no session while it is `opening`."""

    checkout_id: str
    plan: str
    price: str
    quantity: int
    success_url: str
    cancel_url: str
    catalog_version: int
    session_id: str | None
    url: str | None
    expires_at: datetime | None
    # Created by this call, not found.
    is_new: bool = False

    def sells(self, order: CheckoutOrder, price: str, catalog_version: int) -> bool:
        """Say whether the page sells exactly this order under this catalog version."""
        return (self.plan, self.price, self.quantity, self.success_url, self.cancel_url, self.catalog_version) == (
            order.plan,
            price,
            order.quantity,
            order.success_url,
            order.cancel_url,
            catalog_version,
        )


async def find_open(conn: AsyncConnection, account_id: str) -> CheckoutPage | None:
    """Return the page that is stored as open; it may have expired at Stripe."""
    columns = select_list.columns(CheckoutPage, _CHECKOUTS, without=("is_new",))
    query = sa.select(*columns).where(_CHECKOUTS.c.account_id == account_id, _CHECKOUTS.c.state.in_(_OPEN))
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else CheckoutPage(*row)


async def insert(conn: AsyncConnection, account_id: str, page: CheckoutPage, now: datetime) -> None:
    """Store the intent of a new page."""
    inserted = await conn.execute(
        postgresql.insert(_CHECKOUTS)
        .values(
            account_id=account_id,
            checkout_id=page.checkout_id,
            plan=page.plan,
            price=page.price,
            quantity=page.quantity,
            success_url=page.success_url,
            cancel_url=page.cancel_url,
            catalog_version=page.catalog_version,
            state="opening",
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(_CHECKOUTS.c.checkout_id)
    )
    if inserted.scalar_one_or_none() is None:
        raise transactions.RetryTransaction


async def expire_open(conn: AsyncConnection, account_id: str, now: datetime) -> None:
    """Close the account's open page as expired; changes nothing if there is none."""
    await conn.execute(
        sa.update(_CHECKOUTS)
        .where(_CHECKOUTS.c.account_id == account_id, _CHECKOUTS.c.state.in_(_OPEN))
        .values(state="expired", closed_at=now)
    )


async def open_session(conn: AsyncConnection, account_id: str, page: CheckoutPage) -> None:
    """Store a page's session, unless it is stored already."""
    opened = {"state": "open", "session_id": page.session_id, "url": page.url, "expires_at": page.expires_at}
    await conn.execute(
        sa.update(_CHECKOUTS).where(*_is(account_id, page.checkout_id), _CHECKOUTS.c.state == "opening").values(opened)
    )


async def close(conn: AsyncConnection, account_id: str, checkout_id: str, state: str, now: datetime) -> bool:
    """Mark a checkout `complete` or `expired`; returns whether it was open. A closed checkout does not change."""
    closed = await conn.execute(
        sa.update(_CHECKOUTS)
        .where(*_is(account_id, checkout_id), _CHECKOUTS.c.state.in_(_OPEN))
        .values(state=state, closed_at=now)
    )
    return closed.rowcount == 1


def _is(account_id: str, checkout_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_CHECKOUTS.c.account_id == account_id, _CHECKOUTS.c.checkout_id == checkout_id)
