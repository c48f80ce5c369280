"""Sending: each usage report becomes one meter event; an account's reports are sent in order, each after the previous.

The work on an account needs a lease with a fencing number, and every write checks that the number is still the current
one. The attempt is stored before the call. So after a crash at any point the same call is made again under the same
identifier.
"""

import asyncio
import enum
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors, money
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, leases
from billing_svc.usage_export import (
    billability,
    late_charges,
    rules,
    shared_meters,
    states,
    store,
    stripe_lookups,
)

_log = structlog.get_logger(__name__)

T = TypeVar("T")

# Accounts that a round takes, and how many of them run at the same time.
ACCOUNTS_MAX = 100
ACCOUNTS_AT_ONCE = 8


class SendOutcome(enum.Enum):
    """The result of a step for a usage report."""

    DONE = enum.auto()
    # Nothing can be done before some instant; the later reports of its counter wait.
    HELD = enum.auto()
    # Stripe cannot be reached, or the outcome is unknown.
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class SendRound:
    """The result of a round for an account: reports that advanced, and reports that could not be sent to Stripe."""

    moved: int
    stuck: int


class Sender:
    """Sends accrued usage reports to Stripe."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
        notice_missing: late_charges.NoticeMissing | None = None,
    ) -> None:
        """`notice_missing` unlinks a customer that Stripe refused as missing, if it was deleted there."""
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        self._asking = stripe_lookups.StripeLookups(database, catalogs, stripe, now)
        self._late = late_charges.LateUsage(database, catalogs, stripe, now, notice_missing)

    async def send_due(self) -> int:
        """Send the reports that are due, and return how many advanced.

        Raises Unavailable if Postgres cannot be reached at the start. Later on, an account whose work fails keeps its
        lease until the lease expires, and the other accounts continue.
        """
        now = self._clock.now()
        accounts = await self._database.read(lambda conn: store.due_accounts(conn, ACCOUNTS_MAX, now))
        at_once = asyncio.Semaphore(ACCOUNTS_AT_ONCE)

        async def send_account(account_id: str) -> int:
            async with at_once:
                try:
                    done = await self.send(account_id)
                except errors.BillingError as error:
                    _log.warning("account_left", account=account_id, error=error.message)
                except Exception:  # noqa: BLE001 - logged in full; an error in one account must not stop the others
                    _log.exception("send_failed", account=account_id)
                else:
                    return 0 if done is None else done.moved
                return 0

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(send_account(account_id)) for account_id in accounts]
        return sum(task.result() for task in tasks)

    async def send(self, account_id: str, *, at_once: bool = False) -> SendRound | None:
        """Send an account's due reports, or (`at_once`) all; None while another process sends for the account."""
        now = self._clock.now()
        lease = await self._database.run(lambda conn: leases.take(conn, f"usage:{account_id}", now))
        if lease is None:
            return None
        try:
            done = await self._send(account_id, lease, at_once=at_once)
        except leases.Overtaken:
            _log.info("overtaken", account=account_id)
            return None
        await self._database.run(lambda conn: leases.end(conn, lease, self._clock.now()))
        return done

    async def _send(self, account_id: str, lease: leases.Lease, *, at_once: bool) -> SendRound:
        moved = stuck = 0
        waiting: dict[tuple[str, datetime | None], datetime] = {}
        for report in await self._database.read(lambda conn: store.open_reports(conn, account_id)):
            if report.state is not states.ReportState.SEALED:
                continue
            name, now = report.stripe_event_name, self._clock.now()
            until = waiting.get((name, None)) or waiting.get((name, report.period_start))
            if until is not None:
                stuck += (name, None) in waiting
                await self._postpone(lease, report, until)
            elif not at_once and report.next_attempt_at > now:
                waiting[_behind(report)] = report.next_attempt_at
            else:
                outcome = await self._advance(lease, report)
                if outcome is SendOutcome.DONE:
                    moved += 1
                    continue
                report_after = await self._read(report)
                waiting[_behind(report_after)] = report_after.next_attempt_at
                if outcome is SendOutcome.UNKNOWN:
                    # Stripe would keep the other meters' reports waiting as long; the next round begins with them.
                    stuck += 1
                    break
        moved += await self._late.charge(account_id, lease)
        return SendRound(moved, stuck)

    async def _read(self, report: rules.UsageReport) -> rules.UsageReport:
        found = await self._database.read(lambda conn: store.find(conn, report.account_id, report.report_id))
        return report if found is None else found

    async def _advance(self, lease: leases.Lease, report: rules.UsageReport) -> SendOutcome:
        """Take the steps for a report one after another, until it is done or has to wait."""
        now = self._clock.now()
        held = await self._asking.subscription(report)
        found = billability.next_step(report, held, now)
        if found.step is billability.Step.ASK:
            try:
                found = await self._asking.period(report, held)
            except (errors.StripeUnavailable, errors.StripeObjectUnreadable) as error:
                return await self._try_later(lease, report, error)
            if found.step is billability.Step.CHARGE_LATE and report.first_attempt_at is not None:
                found = billability.unknown(report, now)
        match found.step:
            case billability.Step.SEND | billability.Step.ASK:
                if held is not None and held.line_amount > money.MINOR_UNITS_MAX and report.first_attempt_at is None:
                    # Stripe's meter would count the units, and the period's invoice could not become final.
                    most = money.MINOR_UNITS_MAX
                    why = f"the invoice line would be {held.line_amount} minor units; Stripe takes {most}"
                    await self._fail(lease, report, why)
                    return SendOutcome.DONE
                return await self._attempt(lease, report)
            case billability.Step.LOOK:
                return await self._look(lease, report)
            case billability.Step.CHARGE_LATE:
                await self._write(lease, report, states.too_late(now, found.why))
                return SendOutcome.DONE
            case billability.Step.WAIT:
                await self._postpone(lease, report, found.until or now)
                return SendOutcome.HELD if report.first_attempt_at is None else SendOutcome.UNKNOWN

    async def _attempt(self, lease: leases.Lease, report: rules.UsageReport) -> SendOutcome:
        now = self._clock.now()
        retry_at = rules.retry_at(report.attempts, now, random.random())  # noqa: S311 - a pause is no secret
        begun = await self._fenced(lease, lambda conn: store.begin_attempt(conn, report, retry_at, now))
        if begun is None:
            return SendOutcome.DONE
        event = client.MeterEvent(
            begun.stripe_event_name, begun.customer_id, begun.units, begun.reported_for, begun.identifier
        )
        try:
            # The identifier makes a repeat safe. Each attempt has its own idempotency key: with a shared key Stripe
            # would repeat its stored answer, and so a failure whose cause is over.
            await self._stripe.meter_event(event, f"{begun.identifier}:{begun.attempts}")
        except (errors.StripeRefused, client.NotAtStripe) as error:
            return await self._refused(lease, begun, str(error), is_first=report.first_attempt_at is None)
        except errors.StripeUnavailable as error:
            _log.info("report_outcome_unknown", account=begun.account_id, report=begun.report_id, error=error.message)
            await self._write(lease, begun, states.Change({"error": error.message}))
            return SendOutcome.UNKNOWN
        await self._write_sent(lease, begun)
        return SendOutcome.DONE

    async def _refused(
        self, lease: leases.Lease, report: rules.UsageReport, why: str, *, is_first: bool
    ) -> SendOutcome:
        now = self._clock.now()
        if is_first:
            await self._fail(lease, report, why)
            return SendOutcome.DONE
        # An earlier attempt may have arrived: the meter's total will show it.
        until = billability.unknown(report, now).until or now
        await self._write(lease, report, states.Change({"refused_at": now, "error": why, "next_attempt_at": until}))
        return SendOutcome.UNKNOWN

    async def _fail(self, lease: leases.Lease, report: rules.UsageReport, why: str) -> None:
        """Mark as failed a report that Stripe refused and certainly does not have; an operator may retry it."""
        _log.error("report_failed", account=report.account_id, report=report.report_id, error=why)
        await self._write(lease, report, states.failed_absent(self._clock.now(), why))

    async def _look(self, lease: leases.Lease, report: rules.UsageReport) -> SendOutcome:
        """Find out from the meter's total for a minute whether a report has arrived.

        It is the only event of that minute with an unknown outcome, because events are sent one after another.
        """
        try:
            total = await self._asking.meter_total(report, report.minute, report.minute + timedelta(minutes=1))
        except (errors.StripeUnavailable, errors.StripeObjectUnreadable) as error:
            return await self._try_later(lease, report, error)
        others = await self._database.read(lambda conn: store.sent_in_minute(conn, report))
        now = self._clock.now()
        if total == others + report.units:
            await self._write_sent(lease, report)
        elif total != others:
            why = f"its meter has {total} units in that minute; {others} or {others + report.units} were expected"
            _log.error("report_failed", account=report.account_id, report=report.report_id, error=why)
            await self._write(lease, report, states.failed_undecided(now, why))
        elif report.refused_at is not None:
            await self._fail(lease, report, report.error or "refused")
        else:
            await self._write(lease, report, states.resealed(now, uuid.uuid4().hex))
            return await self._advance(lease, await self._read(report))
        return SendOutcome.DONE

    async def _try_later(
        self, lease: leases.Lease, report: rules.UsageReport, error: errors.BillingError
    ) -> SendOutcome:
        now = self._clock.now()
        until = rules.retry_at(max(report.attempts, 1), now, random.random())  # noqa: S311 - a pause is no secret
        await self._write(lease, report, states.Change({"next_attempt_at": until, "error": error.message}))
        # An object that cannot be read holds up its own reports alone.
        return SendOutcome.UNKNOWN if isinstance(error, errors.StripeUnavailable) else SendOutcome.HELD

    async def _postpone(self, lease: leases.Lease, report: rules.UsageReport, until: datetime) -> None:
        if until > report.next_attempt_at:
            await self._write(lease, report, states.Change({"next_attempt_at": until}))

    async def _write_sent(self, lease: leases.Lease, report: rules.UsageReport) -> None:
        """Note that a report is at Stripe; several items may have begun to bill its meter during the call."""
        now = self._clock.now()

        async def write(conn: AsyncConnection) -> None:
            await store.write(conn, report, states.sent(now))
            await shared_meters.note(conn, self._catalogs, report.account_id, {}, now)

        await self._fenced(lease, write)

    async def _write(self, lease: leases.Lease, report: rules.UsageReport, change: states.Change) -> None:
        await self._fenced(lease, lambda conn: store.write(conn, report, change))

    async def _fenced(self, lease: leases.Lease, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Write only while this process holds the account's lease; raises Overtaken if it does not."""

        async def fenced(conn: AsyncConnection) -> T:
            if not await leases.renew(conn, lease, self._clock.now()):
                raise leases.Overtaken
            return await work(conn)

        return await self._database.run(fenced)


def _behind(report: rules.UsageReport) -> tuple[str, datetime | None]:
    """Return the key of the reports that must wait for this report: those of its counter.

    If this report may be on its way to Stripe, all reports of its meter wait: calls for a customer and meter must be
    made one at a time, and the meter's total can decide only a single unknown outcome.
    """
    return (report.stripe_event_name, report.period_start if report.first_attempt_at is None else None)
