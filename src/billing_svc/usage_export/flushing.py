"""Flushing: all of an account's usage is at Stripe before its plan changes or ends."""

import asyncio
from datetime import timedelta

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.database import transactions
from billing_svc.stripe import client
from billing_svc.usage_export import pacing, sealing, sending

# An RPC waits for it, and has a call of its own to make afterwards.
SECONDS_MAX = 12.0
# While somebody else is sending for the account.
PAUSE_SECONDS = 0.2
# Somebody waits, so these calls go out at the pace of one account, and not behind all the others'.
CALLS_PER_SECOND = 20.0


class Flush:
    """Seals and sends an account's usage now."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._clock = now
        at_once = timedelta()
        self._sealer = sealing.Sealer(database, catalogs, now, at_once, at_once)
        self._sender = sending.Sender(database, catalogs, stripe, now, pacing.Pace(CALLS_PER_SECOND))

    async def flush(self, account_id: str) -> None:
        """Return when all that the account used until now is at Stripe, or can only be charged by an invoice item.

        Never inside a transaction. Raises UsageNotReported while something is under way or Stripe is away, and
        Unavailable when Postgres is.
        """
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await self._sealer.seal(account_id)
                sealed_at = self._clock.now()
                done = await self._sender.send(account_id, at_once=True)
                while done is None:
                    await asyncio.sleep(PAUSE_SECONDS)
                    done = await self._sender.send(account_id, at_once=True)
                # What is stamped with this second counts only in a period that ends after it.
                second_over = sealed_at.replace(microsecond=0) + timedelta(seconds=1)
                await asyncio.sleep(max(0.0, (second_over - self._clock.now()).total_seconds()))
        except TimeoutError as error:
            raise errors.UsageNotReported(account_id) from error
        if done.stuck:
            raise errors.UsageNotReported(account_id)
