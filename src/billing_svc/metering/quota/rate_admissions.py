"""Admits the calls of a batch to their accounts' rate windows, in the transaction that writes the batch."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import parts
from billing_svc.metering.quota import rules, store
from billing_svc.platform.database import transactions


class RateAdmissions:
    """Admits calls in their order, by the windows as they were read; `write` then counts all of them at once."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        # How many more calls each account's rate window admits.
        self._room: dict[str, int] = {}
        self._wanted: dict[str, rules.RateRequests] = {}

    def admit(self, account_id: str, limit: parts.RateLimit, window: rules.RateWindow | None) -> rules.Decision | None:
        """Admit a call to the account's rate window; returns the denial if the window is full, else None."""
        room = self._room.setdefault(account_id, limit.requests if window is None else window.room(limit, self._now))
        if room == 0:
            opened_at = window.start if window is not None and not window.is_over(limit, self._now) else self._now
            return rules.rate_limited(limit, opened_at, self._now)
        self._room[account_id] = room - 1
        self._wanted.setdefault(account_id, rules.RateRequests(limit, is_first=window is None)).number += 1
        return None

    async def write(self, conn: AsyncConnection) -> None:
        """Count the admitted calls. Raises RetryTransaction if another transaction filled a window meanwhile."""
        if not self._wanted:
            return
        admitted = await store.admit(conn, self._wanted, self._now)
        if any(admitted[account_id][0] < one.number for account_id, one in self._wanted.items()):
            raise transactions.RetryTransaction
