"""QuotaService: gRPC in, one statement, gRPC out."""

from billing.v1 import quota_pb2, quota_pb2_grpc
from billing_svc import clock, errors, interceptors
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.quota import conversions, reading, rules


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
        units = known.units(under, quantity)
        counter = known.facts.counters.get(under.period.start, rules.Counter())
        decision = rules.decide(
            under.limit(known.meter),
            under.included(known.meter),
            counter,
            units,
            rules.grace_end(counter, known.newest.grace_period),
            now,
        )
        return conversions.to_proto_check(known, under, counter, units, decision)
