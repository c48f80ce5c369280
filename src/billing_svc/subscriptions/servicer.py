"""SubscriptionService: gRPC in, the database and Stripe in turn, gRPC out."""

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import subscription_pb2, subscription_pb2_grpc
from billing_svc import clock, fields, interceptors, settings
from billing_svc.audit import store as audit_store
from billing_svc.catalog import conversions as plans_conversions
from billing_svc.catalog import model, versions
from billing_svc.database import transactions
from billing_svc.quota import reading, terms
from billing_svc.subscriptions import checkout, conversions, store


class SubscriptionServicer(subscription_pb2_grpc.SubscriptionServiceServicer):
    """Says what an account has bought, and sells."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        pages: checkout.Checkout,
        now: clock.Clock,
        options: settings.Settings,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._pages = pages
        self._clock = now
        self._success_url = options.success_url
        self._cancel_url = options.cancel_url
        self._origins = frozenset(
            fields.origin(url) for url in (options.success_url, options.cancel_url, *options.redirect_origins)
        )

    async def GetSubscription(
        self, request: subscription_pb2.GetSubscriptionRequest, context: interceptors.Context
    ) -> subscription_pb2.GetSubscriptionResponse:
        """Say which plan is in force and how the subscription stands."""
        account_id = conversions.from_proto_get(request)
        now = self._clock.now()

        async def work(conn: AsyncConnection) -> tuple[terms.Terms, list[store.Row]]:
            known = await reading.read_standing(conn, self._catalogs, account_id, now)
            return known.terms_at(now), await store.plan_subscriptions(conn, account_id)

        under, rows = await self._database.read(work)
        # The one that gives the plan; if none does, the latest.
        in_force = under.subscription.subscription_id if under.subscription else None
        row = next((row for row in rows if row.subscription_id == in_force), rows[0] if rows else None)
        return subscription_pb2.GetSubscriptionResponse(subscription=conversions.to_proto_subscription(under, row, now))

    async def CreateCheckout(
        self, request: subscription_pb2.CreateCheckoutRequest, context: interceptors.Context
    ) -> subscription_pb2.CreateCheckoutResponse:
        """Give the account's checkout page for a plan."""
        order = conversions.from_proto_checkout(request, self._success_url, self._cancel_url, self._origins)
        call = interceptors.current_call()
        origin = audit_store.Origin(f"caller:{call.caller.name}", call.request_id)
        return conversions.to_proto_checkout(await self._pages.open_page(order, origin))

    async def ListPlans(
        self, request: subscription_pb2.ListPlansRequest, context: interceptors.Context
    ) -> subscription_pb2.ListPlansResponse:
        """List what the newest catalog offers."""
        page_size, after = plans_conversions.from_proto_list_plans(request)

        async def work(conn: AsyncConnection) -> tuple[model.Catalog, int]:
            version = await versions.newest(conn)
            if version is None:
                raise LookupError("no catalog was ever published")
            return await self._catalogs.get(conn, version), version

        catalog, version = await self._database.read(work)
        return plans_conversions.to_proto_plans(
            catalog, version, include_unsold=request.include_unsold, page_size=page_size, after=after
        )
