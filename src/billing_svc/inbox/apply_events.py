"""Applies the inbox: a single worker at a time for each Stripe object, and one fetch for all its waiting events.

The fetched state decides, not the order of the events: events that arrive twice, late or out of order lead to Stripe's
current state. A worker that was overtaken finds that its lease is lost, and writes nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.customers import store as customers_store
from billing_svc.inbox import (
    handle_checkouts,
    handle_customers,
    handle_invoices,
    handle_meter_errors,
    handle_subscriptions,
    handler,
    rules,
    store,
)
from billing_svc.platform import clock, errors
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, leases
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription
from billing_svc.subscriptions.refusals import gone_customers

_log = structlog.get_logger(__name__)

# How many objects a round takes, and how many at the same time. A purchase, which comes first, waits for the end of the
# round under way: some seconds while all of Stripe's limit is used.
OBJECTS_MAX = 20
OBJECTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Work:
    """The events of an object, all of the same kind, and the object's lease."""

    lease: leases.Lease
    kind: rules.ObjectKind
    events: Sequence[rules.Event]
    # How often the waiting events were tried before.
    attempts: int

    @property
    def object_id(self) -> str:
        return self.lease.object_id

    @property
    def event_ids(self) -> list[str]:
        return [event.event_id for event in self.events]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The final state of an event that needs no fetch."""

    event_id: str
    state: str
    note: str


class Inbox:
    """Applies the waiting events of the inbox."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
        *,
        livemode: bool = False,
    ) -> None:
        """`livemode` is the mode of our own key: events of the other mode are ignored, also when replayed."""
        self._database = database
        self._catalogs = catalogs
        self._clock = now
        self._livemode = livemode
        refresher = refresh_subscription.Refresher(database, catalogs, stripe, now)
        self._handlers: Mapping[rules.ObjectKind, handler.Handler] = {
            rules.ObjectKind.SUBSCRIPTION: handle_subscriptions.SubscriptionHandler(catalogs, stripe),
            rules.ObjectKind.CHECKOUT: handle_checkouts.CheckoutHandler(),
            rules.ObjectKind.INVOICE: handle_invoices.InvoiceHandler(stripe),
            rules.ObjectKind.CUSTOMER: handle_customers.CustomerHandler(
                gone_customers.GoneCustomers(database, stripe, refresher, now)
            ),
            rules.ObjectKind.METER_ERROR: handle_meter_errors.MeterErrorHandler(stripe),
        }

    async def apply_due(self) -> int:
        """Apply the due events, and return the number of their objects.

        Raises Unavailable if Postgres cannot be reached at the start. If an object fails later, its lease stays until
        it expires, and the other objects are still applied.
        """
        now = self._clock.now()
        due = await self._database.read(lambda conn: store.due_objects(conn, OBJECTS_MAX, now))
        at_once = asyncio.Semaphore(OBJECTS_AT_ONCE)

        async def one(object_id: str) -> bool:
            async with at_once:
                try:
                    return await self._apply_object(object_id)
                except errors.BillingError as error:
                    _log.warning("object_left", object=object_id, error=error.message)
                    return False

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(object_id)) for object_id in due]
        return sum(task.result() for task in tasks)

    async def _apply_object(self, object_id: str) -> bool:
        """Apply an object's waiting events; returns False if there are none or another worker has the lease."""
        taken = await self._take(object_id)
        if taken is None:
            return False
        lease, pending = taken
        work, verdicts = self._judge(lease, pending)
        if verdicts or work is None:
            await self._record(lease, verdicts, is_all=work is None)
        if work is not None:
            await self._apply(work)
        return True

    async def _take(self, object_id: str) -> tuple[leases.Lease, Sequence[store.Pending]] | None:
        """Lease an object and read its pending events: only these are applied and marked."""
        now = self._clock.now()

        async def take(conn: AsyncConnection) -> tuple[leases.Lease, Sequence[store.Pending]] | None:
            lease = await leases.take(conn, object_id, now)
            if lease is None:
                return None
            pending = await store.pending(conn, object_id)
            if not pending:  # another worker has just applied them
                await leases.end(conn, lease, now)
                return None
            return lease, pending

        return await self._database.run(take)

    def _judge(self, lease: leases.Lease, pending: Sequence[store.Pending]) -> tuple[_Work | None, list[_Verdict]]:
        """Separate the events that are to be applied from the events that need no fetch.

        Stripe never uses an id for objects of two kinds. If it happens, the kind that is due is applied, and the other
        kind when it is due.
        """
        now = self._clock.now()
        verdicts: list[_Verdict] = []
        by_kind: dict[rules.ObjectKind, list[rules.Event]] = {}
        waiting: list[tuple[datetime, int, rules.ObjectKind]] = []
        for one in pending:
            try:
                # The row's key identifies the event, because rows are marked by it.
                event = replace(rules.parse(one.body, now), event_id=one.event_id)
            except errors.InvalidRequest as error:
                verdicts.append(_Verdict(one.event_id, "failed", error.message))
                continue
            reason = event.ignored_because(livemode=self._livemode)
            if reason is not None:
                verdicts.append(_Verdict(one.event_id, "ignored", reason))
            elif event.kind is not None:
                by_kind.setdefault(event.kind, []).append(event)
                if one.state == "waiting":
                    waiting.append((one.next_attempt_at, one.attempts, event.kind))
        if not waiting:
            return None, verdicts
        kind = min(waiting, key=lambda one: one[0])[2]
        attempts = max(attempts for _, attempts, of_kind in waiting if of_kind is kind)
        return _Work(lease, kind, by_kind[kind], attempts), verdicts

    async def _record(self, lease: leases.Lease, verdicts: Sequence[_Verdict], *, is_all: bool) -> None:
        now = self._clock.now()

        async def record(conn: AsyncConnection) -> None:
            if is_all:
                await leases.end(conn, lease, now)
            for one in verdicts:
                await store.close(conn, [one.event_id], one.state, "", one.note, now)

        await self._database.run(record)

    async def _apply(self, work: _Work) -> None:
        try:
            await self._require_ours(work.events)
            apply = await self._handlers[work.kind].prepare(work.events)
            await self._finish(work, apply)
        except leases.Overtaken:
            _log.info("overtaken", object=work.object_id)
        except apply_subscription.NotOurs as finding:
            await self._close(work, "ignored", str(finding))
        except (errors.StripeObjectUnreadable, errors.StripeRefused, client.NotAtStripe, client.NotReadable) as error:
            _log.warning("event_failed", object=work.object_id, events=work.event_ids, error=str(error))
            standing = error.standing if isinstance(error, apply_subscription.CannotApply) else None
            await self._close(work, "failed", str(error), standing)
        except (errors.Unavailable, errors.LostRace) as error:
            await self._postpone(work, error.message)
        except Exception as error:  # noqa: BLE001 - logged and postponed; an event must not stop the others
            # A defect of our code: the event stays in the inbox, and a corrected release applies it.
            _log.exception("event_crashed", object=work.object_id, events=work.event_ids)
            await self._postpone(work, f"internal error: {type(error).__name__}")

    async def _require_ours(self, events: Sequence[rules.Event]) -> None:
        """Raise NotOurs if the payload names a customer that is not ours, to save the fetch from Stripe."""
        customer_id = next((event.customer_id for event in events if event.customer_id), None)
        if customer_id is None:
            return
        known = await self._database.read(lambda conn: customers_store.account_of_customer(conn, customer_id))
        if known is None:
            raise apply_subscription.NotOurs(f"customer {customer_id} is not ours")

    async def _finish(self, work: _Work, apply: handler.Apply) -> None:
        now = self._clock.now()

        async def finish(conn: AsyncConnection) -> None:
            if not await leases.end(conn, work.lease, now):
                raise leases.Overtaken
            account_id = await apply(conn, now)
            await store.close(conn, work.event_ids, "applied", account_id, None, now)

        await self._database.run(finish)

    async def _close(
        self, work: _Work, state: str, note: str, standing: stripe_subscriptions.Standing | None = None
    ) -> None:
        """Close the events. `standing`: what is known of their subscription without its prices; it is applied."""
        now = self._clock.now()

        async def close(conn: AsyncConnection) -> None:
            if not await leases.end(conn, work.lease, now):
                return
            account_id, closed_as, why = "", state, note
            if standing is not None:
                origin = handler.origin(work.events)
                try:
                    account_id = await apply_subscription.apply_standing(conn, self._catalogs, standing, origin, now)
                except apply_subscription.NotOurs as finding:
                    closed_as, why = "ignored", finding.message
            await store.close(conn, work.event_ids, closed_as, account_id, why, now)

        await self._database.run(close)

    async def _postpone(self, work: _Work, note: str) -> None:
        now = self._clock.now()
        until = rules.retry_at(work.attempts, now)

        async def postpone(conn: AsyncConnection) -> None:
            if await leases.end(conn, work.lease, now):
                await store.postpone(conn, work.event_ids, until, note)

        await self._database.run(postpone)
