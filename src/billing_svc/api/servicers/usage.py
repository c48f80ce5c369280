"""UsageService: records, corrects and reports usage."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import usage_pb2, usage_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.api.conversions import corrections as corrections_conversions
from billing_svc.api.conversions import usage, usage_summary
from billing_svc.catalog import versions
from billing_svc.metering.corrections import correct_usage
from billing_svc.metering.corrections import rules as corrections_rules
from billing_svc.metering.usage import batch_ledger, record_usage, rules
from billing_svc.metering.usage_summary import summarize_usage
from billing_svc.platform import clock, errors
from billing_svc.platform.batching import batcher
from billing_svc.platform.database import transactions
from billing_svc.platform.monitoring import metrics
from billing_svc.usage_export import accrual, invoiced_usage
from billing_svc.usage_export import rules as export_rules

_log = structlog.get_logger(__name__)

# A batch of many events is split into transactions of this size, so that Python prepares a transaction while Postgres
# works on another, and none blocks the event loop or holds a lock for long. Smaller parts cost more for each event.
PART_EVENTS = 250
# For all batches together; the rest of the connection pool is for single events.
_PARTS_AT_ONCE = 4


async def _credits_of(conn: AsyncConnection, taken: correct_usage.Taken) -> list[corrections_rules.Credit]:
    found = await invoiced_usage.paid_back(conn, taken.account_id, taken.meter, taken.period_start)
    return [
        corrections_rules.Credit(
            one.invoice_id, one.currency, one.amount_refunded, one.amount_credited, one.dispute_status
        )
        for one in found
    ]


async def _take_back(conn: AsyncConnection, taken: correct_usage.Taken, now: datetime) -> int:
    lowered = export_rules.Lowered(taken.billable_after, taken.billable)
    return await accrual.take_back_paid_back(conn, taken.account_id, taken.meter, taken.period_start, lowered, now)


# `metering` and `usage_export` are areas of one level, so they meet here.
_REPAYMENTS = correct_usage.Repayments(_credits_of, _take_back)


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Records and corrects usage, and reports it."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        now: clock.Clock,
        counted: metrics.ServerMetrics | None = None,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now
        self._counted = counted
        # Caller and hours; callers are few, and the hours at most twelve.
        self._hinted: set[tuple[str, int]] = set()
        self._parts = asyncio.Semaphore(_PARTS_AT_ONCE)
        self._events = batcher.Batcher[rules.NewEvent, batch_ledger.EventAnswer | rules.DeniedEvent](
            "events", self._record, counted
        )

    async def RecordUsage(
        self, request: usage_pb2.RecordUsageRequest, context: interceptors.Context
    ) -> usage_pb2.RecordUsageResponse:
        """Record an event; repeats of the same event id count only once."""
        call = interceptors.call_of(context)
        event = usage.from_proto_event(request, call.caller.name, call.request_id)
        return usage.to_proto_outcome(await self._events.submit(event))

    async def BatchRecordUsage(
        self, request: usage_pb2.BatchRecordUsageRequest, context: interceptors.Context
    ) -> usage_pb2.BatchRecordUsageResponse:
        """Record many events; an account's events share a transaction. An invalid event does not affect the others."""
        call = interceptors.call_of(context)
        now = self._clock.now()
        parts = usage.to_parts(request, PART_EVENTS)
        response = usage_pb2.BatchRecordUsageResponse()
        results = [response.results.add() for _ in request.events]

        async def record(part: Sequence[int], conn: AsyncConnection) -> None:
            events = [request.events[n] for n in part]
            parsed = usage.from_proto_part(events, call.caller.name, call.request_id)
            fit = [event for event in parsed if isinstance(event, rules.NewEvent)]
            self._hint_at_local_times(fit, now)
            recorded = iter(await record_usage.record(conn, self._catalogs, fit, now) if fit else ())
            for n, event, one in zip(part, events, parsed, strict=True):
                outcome = one if isinstance(one, errors.BillingError) else next(recorded)
                usage.write_result(results[n], event, outcome)

        async def run(part: Sequence[int]) -> None:
            async with self._parts:
                await self._database.run(lambda conn: record(part, conn))

        tasks = [asyncio.create_task(run(part)) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            # After a failure, parts that wait for the semaphore do not begin; transactions under way are shielded.
            for task in tasks:
                task.cancel()
        usage.count_results(response)
        return response

    async def CorrectUsage(
        self, request: usage_pb2.CorrectUsageRequest, context: interceptors.Context
    ) -> usage_pb2.CorrectUsageResponse:
        """Take back units of an event."""
        call = interceptors.call_of(context)
        correction = corrections_conversions.from_proto_correction(request, call.caller.name, call.request_id)
        now = self._clock.now()
        corrected = await self._database.run(
            lambda conn: correct_usage.correct(conn, self._catalogs, correction, _REPAYMENTS, now)
        )
        return corrections_conversions.to_proto_corrected(corrected)

    async def GetUsage(
        self, request: usage_pb2.GetUsageRequest, context: interceptors.Context
    ) -> usage_pb2.GetUsageResponse:
        """Return the account's usage in a quota period."""
        query = usage_summary.from_proto_get(request)
        now = self._clock.now()
        statement = await self._database.read(lambda conn: summarize_usage.summarize(conn, self._catalogs, query, now))
        return usage_summary.to_proto_usage(statement, request)

    async def _record(self, events: Sequence[rules.NewEvent]) -> list[batch_ledger.EventOutcome]:
        now = self._clock.now()
        self._hint_at_local_times(events, now)
        return await self._database.run(lambda conn: record_usage.record(conn, self._catalogs, events, now))

    def _hint_at_local_times(self, events: Sequence[rules.NewEvent], now: datetime) -> None:
        """Count events that are late by whole hours, and log the first one of each caller and number of hours."""
        for event in events:
            occurred_at = event.sent.occurred_at
            hours = 0 if occurred_at is None else rules.whole_hours_late(occurred_at, now)
            if not hours:
                continue
            if self._counted is not None:
                self._counted.whole_hours_late(hours)
            if (event.caller, hours) not in self._hinted:
                self._hinted.add((event.caller, hours))
                _log.warning(
                    "occurred_at_whole_hours_late",
                    account=event.account_id,
                    caller=event.caller,
                    hours=hours,
                    hint="is a local time sent as UTC?",
                )
