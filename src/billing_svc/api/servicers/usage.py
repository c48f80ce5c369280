"""UsageService: gRPC in, one transaction, gRPC out."""

import asyncio
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import usage_pb2, usage_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.api.conversions import corrections as corrections_conversions
from billing_svc.api.conversions import statements as statements_conversions
from billing_svc.api.conversions import usage
from billing_svc.catalog import versions
from billing_svc.metering.corrections import correcting
from billing_svc.metering.usage import books, recording, rules
from billing_svc.metering.usage_summary import drawing
from billing_svc.platform import batching, clock, errors
from billing_svc.platform.database import transactions
from billing_svc.platform.monitoring import metrics

# A batch of many events is several transactions, so that Python prepares one while Postgres works on another, and none
# keeps the event loop or a lock for long. Of fewer events each would pay more for itself.
PART_EVENTS = 250
# Of all batches together: the rest of the pool is for calls that wait for one event.
_PARTS_AT_ONCE = 4


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Records what happened, and says how much that is."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        now: clock.Clock,
        counted: metrics.Server | None = None,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now
        self._parts = asyncio.Semaphore(_PARTS_AT_ONCE)
        self._events = batching.Batcher[rules.NewEvent, books.Answer | rules.Denied]("events", self._record, counted)

    async def RecordUsage(
        self, request: usage_pb2.RecordUsageRequest, context: interceptors.Context
    ) -> usage_pb2.RecordUsageResponse:
        """Record one event: once, whatever is repeated."""
        call = interceptors.call_of(context)
        event = usage.from_proto_event(request, call.caller.name, call.request_id)
        return usage.to_proto_outcome(await self._events.submit(event))

    async def BatchRecordUsage(
        self, request: usage_pb2.BatchRecordUsageRequest, context: interceptors.Context
    ) -> usage_pb2.BatchRecordUsageResponse:
        """Record many events, those of an account in one transaction; one bad event harms no other."""
        call = interceptors.call_of(context)
        now = self._clock.now()
        parts = usage.to_parts(request, PART_EVENTS)
        response = usage_pb2.BatchRecordUsageResponse()
        results = [response.results.add() for _ in request.events]

        async def record(part: Sequence[int], conn: AsyncConnection) -> None:
            events = [request.events[n] for n in part]
            parsed = usage.from_proto_part(events, call.caller.name, call.request_id)
            fit = [event for event in parsed if isinstance(event, rules.NewEvent)]
            recorded = iter(await recording.record(conn, self._catalogs, fit, now) if fit else ())
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
            # After a failure, what waits for its turn need not begin; what is under way is shielded.
            for task in tasks:
                task.cancel()
        usage.count_results(response)
        return response

    async def CorrectUsage(
        self, request: usage_pb2.CorrectUsageRequest, context: interceptors.Context
    ) -> usage_pb2.CorrectUsageResponse:
        """Take units of an event back."""
        call = interceptors.call_of(context)
        correction = corrections_conversions.from_proto_correction(request, call.caller.name, call.request_id)
        now = self._clock.now()
        corrected = await self._database.run(lambda conn: correcting.correct(conn, self._catalogs, correction, now))
        return corrections_conversions.to_proto_corrected(corrected)

    async def GetUsage(
        self, request: usage_pb2.GetUsageRequest, context: interceptors.Context
    ) -> usage_pb2.GetUsageResponse:
        """Say what the account has used in a quota period."""
        query = statements_conversions.from_proto_get(request)
        now = self._clock.now()
        statement = await self._database.read(lambda conn: drawing.draw(conn, self._catalogs, query, now))
        return statements_conversions.to_proto_usage(statement, request)

    async def _record(self, events: Sequence[rules.NewEvent]) -> list[books.Outcome]:
        now = self._clock.now()
        return await self._database.run(lambda conn: recording.record(conn, self._catalogs, events, now))
