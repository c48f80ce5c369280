"""Audit rows in Postgres: written once, never changed."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import tables


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes a change: `caller:<name>`, `operator:<login>` or `stripe:<event id>`, and in which request."""

    actor: str
    request_id: str = ""


async def append(
    conn: AsyncConnection, origin: Origin, account_id: str, action: str, changes: Mapping[str, object], now: datetime
) -> None:
    """Add the row of one mutation; `changes` is what it set, without secrets or personal data."""
    await conn.execute(
        sa.insert(tables.audit_log).values(
            account_id=account_id,
            entry_id=uuid.uuid4().hex,
            at=now,
            actor=origin.actor,
            action=action,
            request_id=origin.request_id,
            changes=dict(changes),
        )
    )
