"""QuotaService: gRPC in, one statement, gRPC out."""

from datetime import datetime

from billing.v1 import quota_pb2, quota_pb2_grpc
from billing_svc import clock, errors, fields, interceptors
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.quota import conversions, reading, rules, store, terms


class QuotaServicer(quota_pb2_grpc.QuotaServiceServicer):
    """Answers whether an account may do something now."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now

    async def CheckQuota(
        self, request: quota_pb2.CheckQuotaRequest, context: interceptors.Context
    ) -> quota_pb2.CheckQuotaResponse:
        """Decide from the account's terms and its counter, read in one snapshot; nothing is cached or written."""
        asked, quantity = conversions.from_proto_check(request)
        if request.reserve:
            raise errors.NotAvailableYet("reserve: reservations are not available yet")
        now = self._clock.now()
        known = (await self._database.read(lambda conn: reading.read(conn, self._catalogs, [asked], now)))[0]
        if isinstance(known, errors.BillingError):
            raise known
        under = known.terms_at(now)
        allowance = known.allowance(under, now)
        units = known.units(under, quantity)
        if units > fields.QUANTITY_MAX:
            problem = f"comes to {units} units; at most {fields.QUANTITY_MAX} are allowed"
            raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
        counter = known.counter_of(under)
        decision = rules.decide(allowance, counter, units, known.newest.grace_period, now)
        if decision.allowed:
            decision = await self._within_rate(request.account_id, under, decision, now)
        response = conversions.to_proto_check(known, under, allowance, counter, units, decision)
        if request.explain:
            response.explanation.CopyFrom(conversions.to_proto_explanation(known, under, allowance, counter, now))
        return response

    async def _within_rate(
        self, account_id: str, under: terms.Terms, decision: rules.Decision, now: datetime
    ) -> rules.Decision:
        """Count an allowed check against the plan's rate limit, last, because a denied one consumes nothing."""
        limit = under.plan.rate_limit_for(pay_as_you_go=under.pay_as_you_go)
        if limit is None:
            return decision
        retry_after = await self._database.run(
            lambda conn: store.admit(conn, account_id, limit.requests, limit.window, now)
        )
        if retry_after is None:
            return decision
        return rules.Decision(allowed=False, reason=rules.Reason.RATE_LIMITED, retry_after=retry_after)
