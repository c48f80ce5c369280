"""SubscriptionService: gRPC in, the database and Stripe in turn, gRPC out."""

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import subscription_pb2, subscription_pb2_grpc
from billing_svc import clock, fields, interceptors, settings
from billing_svc.alerts import acknowledging
from billing_svc.alerts import conversions as alerts_conversions
from billing_svc.alerts import store as alerts_store
from billing_svc.audit import store as audit_store
from billing_svc.catalog import conversions as plans_conversions
from billing_svc.catalog import model, versions
from billing_svc.database import transactions
from billing_svc.pricing import conversions as pricing_conversions
from billing_svc.pricing import previewing
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

    async def PreviewCost(
        self, request: subscription_pb2.PreviewCostRequest, context: interceptors.Context
    ) -> subscription_pb2.PreviewCostResponse:
        """Work out a bill, line by line."""
        asked = pricing_conversions.from_proto_preview(request)
        now = self._clock.now()
        bill = await self._database.read(lambda conn: previewing.preview(conn, self._catalogs, asked, now))
        return pricing_conversions.to_proto_bill(bill)

    async def ListAlerts(
        self, request: subscription_pb2.ListAlertsRequest, context: interceptors.Context
    ) -> subscription_pb2.ListAlertsResponse:
        """List the account's alerts, newest first."""
        page = alerts_conversions.from_proto_list(request)
        # One more than the page shows whether there is a next one.
        found = await self._database.read(
            lambda conn: alerts_store.list_alerts(conn, page.account_id, page.choice, page.after, page.size + 1)
        )
        return alerts_conversions.to_proto_list(found, page)

    async def AcknowledgeAlert(
        self, request: subscription_pb2.AcknowledgeAlertRequest, context: interceptors.Context
    ) -> subscription_pb2.AcknowledgeAlertResponse:
        """Mark an alert as seen."""
        account_id, alert_id = alerts_conversions.from_proto_acknowledge(request)
        call = interceptors.current_call()
        origin = audit_store.Origin(f"caller:{call.caller.name}", call.request_id)
        now = self._clock.now()
        alert = await self._database.run(
            lambda conn: acknowledging.acknowledge(conn, account_id, alert_id, origin, now)
        )
        return subscription_pb2.AcknowledgeAlertResponse(alert=alerts_conversions.to_proto_alert(alert))
