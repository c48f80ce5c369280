"""QuotaService: concurrent calls of an RPC share a batch."""

from collections.abc import Sequence

from billing.v1 import quota_pb2, quota_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.api.conversions import quota
from billing_svc.catalog import versions
from billing_svc.metering.quota import check_quota
from billing_svc.metering.reservations import hold_units
from billing_svc.platform import clock, errors
from billing_svc.platform.batching import batcher
from billing_svc.platform.database import transactions
from billing_svc.platform.monitoring import metrics


class QuotaServicer(quota_pb2_grpc.QuotaServiceServicer):
    """Answers whether an account may do something now, and holds units for it."""

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
        self._counted = counted or metrics.ServerMetrics()
        self._decider = check_quota.QuotaChecks(database, catalogs, now)
        self._checks = batcher.Batcher("checks", self._decider.decide, self._counted, self._count)
        self._holds = batcher.Batcher[check_quota.QuotaQuestion, check_quota.QuotaAnswer | check_quota.RepeatedAnswer](
            "holds", self._reserve, self._counted, self._count
        )
        self._releases = batcher.Batcher("releases", self._release, self._counted)

    async def CheckQuota(
        self, request: quota_pb2.CheckQuotaRequest, context: interceptors.Context
    ) -> quota_pb2.CheckQuotaResponse:
        """Decide from the account's terms and its counter, read in one snapshot; nothing is cached."""
        question = quota.from_proto_check(request, interceptors.call_of(context).caller.name)
        checked: check_quota.QuotaAnswer | check_quota.RepeatedAnswer
        if question.hold is None:
            checked = await self._checks.submit(question)
        else:
            checked = await self._holds.submit(question)
        response = quota.to_proto_check(checked)
        if request.explain:
            response.explanation.CopyFrom(quota.to_proto_explanation(checked))
        return response

    async def ReleaseReservation(
        self, request: quota_pb2.ReleaseReservationRequest, context: interceptors.Context
    ) -> quota_pb2.ReleaseReservationResponse:
        """Release the units that a reservation holds."""
        return quota.to_proto_released(await self._releases.submit(quota.from_proto_release(request)))

    async def _reserve(self, questions: Sequence[check_quota.QuotaQuestion]) -> Sequence[hold_units.ReserveOutcome]:
        now = self._clock.now()
        return await self._database.run(lambda conn: hold_units.reserve(conn, self._catalogs, questions, now))

    def _count(self, outcomes: Sequence[check_quota.QuotaAnswer | check_quota.RepeatedAnswer | BaseException]) -> None:
        decided = [one.decision for one in outcomes if not isinstance(one, BaseException)]
        self._counted.decided((decision.allowed, decision.reason) for decision in decided)

    async def _release(
        self, keys: Sequence[tuple[str, str]]
    ) -> Sequence[hold_units.ReleaseOutcome | errors.BillingError]:
        now = self._clock.now()
        return await self._database.run(lambda conn: hold_units.release(conn, keys, now))
