"""The past stretches of subscriptions in Postgres: their periods before Stripe opened a billing period out of turn.

`subscriptions/records/keep_history.py` writes them; ADR 0019 has the rules.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

_HISTORY = tables.subscription_history


@dataclass(frozen=True, slots=True)
class PastStretch:
    """A stretch of a subscription that a move has ended; `platform/database/tables.py` explains the columns."""

    account_id: str
    subscription_id: str
    since: datetime
    effective_until: datetime
    effective_from: datetime
    anchor: datetime
    trial_end: datetime | None
    billing_period_start: datetime
    status: str
    is_plan: bool
    plan: str
    catalog_version: int
    quantity: int
    overage_denied_from: datetime | None

    def covers(self, at: datetime) -> bool:
        """Say whether `at` lies in the stretch."""
        return self.since <= at < self.effective_until

    @property
    def trial(self) -> tuple[datetime, datetime]:
        """Return the interval of its trial; it is empty without a trial."""
        return self.since, min(self.trial_end or self.since, self.effective_until)


_COLUMNS = select_list.columns(PastStretch, _HISTORY)


async def of_subscriptions(
    conn: AsyncConnection, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[PastStretch, ...]]:
    """Return the past stretches of each (account, subscription), the oldest first."""
    found: dict[tuple[str, str], tuple[PastStretch, ...]] = dict.fromkeys(keys, ())
    if not found:
        return found
    query = sa.select(*_COLUMNS).where(
        sa.tuple_(_HISTORY.c.account_id, _HISTORY.c.subscription_id).in_(list(found)),
    )
    for row in await conn.execute(query.order_by(_HISTORY.c.since)):
        stretch = PastStretch(*row)
        found[stretch.account_id, stretch.subscription_id] += (stretch,)
    return found


async def append(conn: AsyncConnection, stretch: PastStretch) -> None:
    """Store a stretch that has ended."""
    values = {name: getattr(stretch, name) for name in select_list.field_names(PastStretch)}
    await conn.execute(sa.insert(_HISTORY).values(**values))
