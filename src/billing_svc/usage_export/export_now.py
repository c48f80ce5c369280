"""Sends all usage of an account to Stripe before its plan changes or its subscription ends."""

import asyncio
from datetime import timedelta

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.database import transactions
from billing_svc.stripe import client
from billing_svc.usage_export import accrual, sending

# An RPC waits for this, and needs time for its own call of Stripe afterwards.
SECONDS_MAX = 12.0
# Between tries while another process sends for the account.
PAUSE_SECONDS = 0.2


class ExportNow:
    """Accrues and sends an account's usage immediately."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._clock = now
        at_once = timedelta()
        self._sealer = accrual.Accrual(database, catalogs, now, at_once, at_once)
        self._sender = sending.Sender(database, catalogs, stripe, now)

    async def flush(self, account_id: str) -> None:
        """Return when all usage of the account until now is at Stripe, or can only be charged by an invoice item.

        Never call it inside a transaction. Raises UsageNotReported if an outcome is still unknown or Stripe cannot be
        reached, and Unavailable if Postgres cannot be reached.
        """
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await self._sealer.seal(account_id)
                sealed_at = self._clock.now()
                done = await self._sender.send(account_id, at_once=True)
                while done is None:
                    await asyncio.sleep(PAUSE_SECONDS)
                    done = await self._sender.send(account_id, at_once=True)
                # Stripe counts a meter event with this second's timestamp only in a period that ends after this second.
                second_over = sealed_at.replace(microsecond=0) + timedelta(seconds=1)
                await asyncio.sleep(max(0.0, (second_over - self._clock.now()).total_seconds()))
        except TimeoutError as error:
            raise errors.UsageNotReported(account_id) from error
        if done.stuck:
            raise errors.UsageNotReported(account_id)
