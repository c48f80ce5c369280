"""Applying the inbox: one worker at a time for each Stripe object, one fresh fetch for all its waiting events.

Fetched state decides, not the events' order: whatever came twice, late or mixed up ends in what Stripe has. The lease
has a number that grows with each holder; a worker that was overtaken finds its number gone and writes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import clock, errors
from billing_svc.audit import store as audit_store
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.stripe import client
from billing_svc.stripe_events import rules, store
from billing_svc.subscriptions import applying as subscriptions_applying
from billing_svc.subscriptions import checkout
from billing_svc.subscriptions import rules as subscriptions_rules

_log = structlog.get_logger(__name__)

# Objects taken in one round, and how many of them at a time: Stripe's sandbox admits 25 calls a second.
OBJECTS_MAX = 50
OBJECTS_AT_ONCE = 4


class _Overtaken(Exception):
    """Another worker holds the object now."""


@dataclass(frozen=True, slots=True)
class _Work:
    """The waiting events of one object, under a lease."""

    object_id: str
    fence: int
    waiting: Sequence[store.Waiting]

    @property
    def event_ids(self) -> list[str]:
        return [one.event_id for one in self.waiting]

    @property
    def attempts(self) -> int:
        return max(one.attempts for one in self.waiting)


# Applies in a transaction; returns the account.
_Apply = Callable[[AsyncConnection], Awaitable[str]]


class Inbox:
    """Applies what waits in the inbox."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now

    async def apply_due(self) -> int:
        """Apply the events that are due, and return of how many objects.

        Raises Unavailable when Postgres is away at the outset. Later on, an object that cannot be dealt with keeps its
        lease until that runs out, and the others go on.
        """
        now = self._clock.now()
        due = await self._database.read(lambda conn: store.due_objects(conn, OBJECTS_MAX, now))
        at_once = asyncio.Semaphore(OBJECTS_AT_ONCE)

        async def one(object_id: str) -> bool:
            async with at_once:
                try:
                    work = await self._take(object_id)
                    if work is not None:
                        await self._apply(work)
                except errors.BillingError as error:
                    _log.warning("object_left", object=object_id, error=error.message)
                    return False
                return work is not None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(object_id)) for object_id in due]
        return sum(task.result() for task in tasks)

    async def _apply(self, work: _Work) -> None:
        try:
            apply = await self._prepare(work)
            await self._database.run(lambda conn: self._finish(conn, work, apply))
        except _Overtaken:
            _log.info("overtaken", object=work.object_id)
        except subscriptions_applying.NotOurs as finding:
            await self._close(work, "ignored", str(finding))
        except (subscriptions_applying.CannotApply, errors.StripeRefused) as error:
            _log.warning("event_failed", object=work.object_id, events=work.event_ids, error=str(error))
            await self._close(work, "failed", str(error))
        except (errors.Unavailable, errors.LostRace) as error:
            await self._postpone(work, error.message)
        except Exception as error:  # noqa: BLE001 - logged and kept; one event must not stop the others
            # A defect of ours: keep the event, say so, and go on with the others; a mended release applies it.
            _log.exception("event_crashed", object=work.object_id, events=work.event_ids)
            await self._postpone(work, f"internal error: {type(error).__name__}")

    async def _take(self, object_id: str) -> _Work | None:
        """Lease an object and note its waiting events: those are fetched for, and only those are marked."""
        now = self._clock.now()

        async def work(conn: AsyncConnection) -> _Work | None:
            fence = await store.lease(conn, object_id, now)
            if fence is None:
                return None
            waiting = await store.waiting(conn, object_id)
            if not waiting:  # another worker was just here
                await store.end_lease(conn, object_id, fence, now)
                return None
            return _Work(object_id, fence, waiting)

        return await self._database.run(work)

    async def _prepare(self, work: _Work) -> _Apply:
        """Fetch what the events are about, once; returns what is to be done with it."""
        now = self._clock.now()
        try:
            events = [rules.parse(one.body, now) for one in work.waiting]
        except errors.InvalidRequest as error:
            raise subscriptions_applying.CannotApply(error.message) from error
        subscription = await self._fetch_subscription(events)
        sessions = [event for event in events if event.type.startswith("checkout.session.")]
        if subscription is None and not sessions:
            raise subscriptions_applying.CannotApply("names no subscription")

        async def apply(conn: AsyncConnection) -> str:
            account_id = None
            if subscription is not None:
                origin = audit_store.Origin(f"stripe:{work.event_ids[-1]}")
                # First, because it locks the account, as opening a checkout does before it looks at the page.
                account_id = await subscriptions_applying.apply(conn, self._catalogs, subscription, origin, now)
            for event in sessions:
                account_id = await _close_checkout(conn, event, now) or account_id
            if account_id is None:
                raise subscriptions_applying.NotOurs("the checkout is none that this service opened")
            return account_id

        return apply

    async def _fetch_subscription(self, events: Sequence[rules.Event]) -> subscriptions_rules.StripeSubscription | None:
        subscription_id = next((event.subscription_id for event in events if event.subscription_id), None)
        if subscription_id is None:
            return None
        try:
            data = await self._stripe.subscription(subscription_id)
        except client.NotAtStripe:
            # Gone for good: its last word is in the event itself.
            last = next((event for event in reversed(events) if event.type == "customer.subscription.deleted"), None)
            if last is None:
                message = f"Stripe has no subscription {subscription_id}"
                raise subscriptions_applying.CannotApply(message) from None
            data = last.object
        try:
            return subscriptions_rules.from_stripe(data)
        except ValueError as error:
            raise subscriptions_applying.CannotApply(str(error)) from error

    async def _finish(self, conn: AsyncConnection, work: _Work, apply: _Apply) -> None:
        now = self._clock.now()
        if not await store.end_lease(conn, work.object_id, work.fence, now):
            raise _Overtaken
        account_id = await apply(conn)
        await store.close(conn, work.event_ids, "applied", account_id, None, now)

    async def _close(self, work: _Work, state: str, note: str) -> None:
        now = self._clock.now()

        async def close(conn: AsyncConnection) -> None:
            if await store.end_lease(conn, work.object_id, work.fence, now):
                await store.close(conn, work.event_ids, state, "", note, now)

        await self._database.run(close)

    async def _postpone(self, work: _Work, note: str) -> None:
        now = self._clock.now()
        until = rules.retry_at(work.attempts, now)

        async def postpone(conn: AsyncConnection) -> None:
            if await store.end_lease(conn, work.object_id, work.fence, now):
                await store.postpone(conn, work.event_ids, until, note)

        await self._database.run(postpone)


async def _close_checkout(conn: AsyncConnection, event: rules.Event, now: datetime) -> str | None:
    """Close the checkout that a session's event is about; returns its account, if it is one of ours."""
    named = event.checkout
    if named is None:
        return None
    state = "complete" if event.type == "checkout.session.completed" else "expired"
    await checkout.close(conn, named.account_id, named.checkout_id, state, now)
    return named.account_id
