"""SubscriptionService: RPCs use the database and Stripe, never Stripe inside of a transaction."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import subscription_pb2, subscription_pb2_grpc
from billing_svc.api import fields, interceptors
from billing_svc.api.conversions import alerts as alerts_conversions
from billing_svc.api.conversions import catalog as catalog_conversions
from billing_svc.api.conversions import changes as changes_conversions
from billing_svc.api.conversions import invoices as invoices_conversions
from billing_svc.api.conversions import previews, subscriptions
from billing_svc.catalog import model, versions
from billing_svc.customers import portal
from billing_svc.metering.alerts import acknowledge_alert
from billing_svc.metering.alerts import store as alerts_store
from billing_svc.metering.quota import lookup
from billing_svc.platform import clock, settings
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import prices, subscription_records
from billing_svc.subscriptions.changes import cancel_subscription, change_plan
from billing_svc.subscriptions.checkouts import open_checkout
from billing_svc.subscriptions.invoices import store as invoices_store
from billing_svc.subscriptions.pay_as_you_go import toggle
from billing_svc.subscriptions.previews import next_invoice, preview_cost
from billing_svc.subscriptions.refusals import handle_refusals


@dataclass(frozen=True, slots=True)
class SubscriptionOperations:
    """The operations that call Stripe to sell, change and end subscriptions."""

    checkout: open_checkout.Checkout
    portal: portal.Portal
    plan_changes: change_plan.PlanChanges
    cancellation: cancel_subscription.Cancellation
    pay_as_you_go: toggle.PayAsYouGoToggle
    next_invoices: next_invoice.NextInvoices
    refusals: handle_refusals.RefusalHandling


class SubscriptionServicer(subscription_pb2_grpc.SubscriptionServiceServicer):
    """Reports what an account has bought, and sells plans."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        operations: SubscriptionOperations,
        now: clock.Clock,
        options: settings.Settings,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._operations = operations
        self._clock = now
        self._success_url = options.success_url
        self._cancel_url = options.cancel_url
        self._return_url = options.portal_return_url or options.cancel_url
        own = (options.success_url, options.cancel_url, self._return_url)
        self._origins = frozenset(fields.origin(url) for url in (*own, *options.redirect_origins))

    async def GetSubscription(
        self, request: subscription_pb2.GetSubscriptionRequest, context: interceptors.Context
    ) -> subscription_pb2.GetSubscriptionResponse:
        """Return the plan in force and the subscription's state."""
        account_id = subscriptions.from_proto_get(request)
        return subscription_pb2.GetSubscriptionResponse(subscription=await self._subscription(account_id))

    async def CreateCheckout(
        self, request: subscription_pb2.CreateCheckoutRequest, context: interceptors.Context
    ) -> subscription_pb2.CreateCheckoutResponse:
        """Return the account's checkout page for a plan."""
        order = subscriptions.from_proto_checkout(request, self._success_url, self._cancel_url, self._origins)
        origin = _origin(context)
        page = await self._operations.refusals.run(
            order.account_id, lambda: self._operations.checkout.open_page(order, origin), origin
        )
        return subscriptions.to_proto_checkout(page)

    async def CreatePortalSession(
        self, request: subscription_pb2.CreatePortalSessionRequest, context: interceptors.Context
    ) -> subscription_pb2.CreatePortalSessionResponse:
        """Return a portal page for the account's customer."""
        visit = changes_conversions.from_proto_portal(request, self._return_url, self._origins)
        origin = _origin(context)
        url = await self._operations.refusals.run(
            visit.account_id, lambda: self._operations.portal.open_page(visit, origin), origin
        )
        return subscription_pb2.CreatePortalSessionResponse(url=url)

    async def SetPayAsYouGo(
        self, request: subscription_pb2.SetPayAsYouGoRequest, context: interceptors.Context
    ) -> subscription_pb2.SetPayAsYouGoResponse:
        """Switch pay-as-you-go on or off."""
        switch = changes_conversions.from_proto_switch(request)
        origin = _origin(context)
        await self._operations.refusals.run(
            switch.account_id, lambda: self._operations.pay_as_you_go.switch(switch, origin), origin
        )
        return subscription_pb2.SetPayAsYouGoResponse(subscription=await self._subscription(switch.account_id))

    async def ChangePlan(
        self, request: subscription_pb2.ChangePlanRequest, context: interceptors.Context
    ) -> subscription_pb2.ChangePlanResponse:
        """Change the subscription's plan, price or quantity, or preview the cost of the change."""
        order = changes_conversions.from_proto_change(request, self._clock.now())
        changes, origin = self._operations.plan_changes, _origin(context)
        outcome = await self._operations.refusals.run(
            order.account_id,
            lambda: changes.preview(order) if request.preview else changes.change(order, origin),
            origin,
        )
        return changes_conversions.to_proto_change(outcome, await self._subscription(order.account_id))

    async def CancelSubscription(
        self, request: subscription_pb2.CancelSubscriptionRequest, context: interceptors.Context
    ) -> subscription_pb2.CancelSubscriptionResponse:
        """End the subscription, at the period's end or now."""
        ending = changes_conversions.from_proto_cancel(request)
        origin = _origin(context)
        await self._operations.refusals.run(
            ending.account_id, lambda: self._operations.cancellation.cancel(ending, origin), origin
        )
        return subscription_pb2.CancelSubscriptionResponse(subscription=await self._subscription(ending.account_id))

    async def ResumeSubscription(
        self, request: subscription_pb2.ResumeSubscriptionRequest, context: interceptors.Context
    ) -> subscription_pb2.ResumeSubscriptionResponse:
        """Undo a cancellation that has not taken effect yet."""
        resumption = changes_conversions.from_proto_resume(request)
        origin = _origin(context)
        await self._operations.refusals.run(
            resumption.account_id, lambda: self._operations.cancellation.resume(resumption, origin), origin
        )
        return subscription_pb2.ResumeSubscriptionResponse(subscription=await self._subscription(resumption.account_id))

    async def ListPlans(
        self, request: subscription_pb2.ListPlansRequest, context: interceptors.Context
    ) -> subscription_pb2.ListPlansResponse:
        """List the plans of the newest catalog."""
        page_size, after = catalog_conversions.from_proto_list_plans(request)

        async def work(conn: AsyncConnection) -> tuple[model.Catalog, int]:
            version = await versions.newest_published(conn)
            return await self._catalogs.get(conn, version), version

        catalog, version = await self._database.read(work)
        return catalog_conversions.to_proto_plans(
            catalog, version, include_unsold=request.include_unsold, page_size=page_size, after=after
        )

    async def PreviewCost(
        self, request: subscription_pb2.PreviewCostRequest, context: interceptors.Context
    ) -> subscription_pb2.PreviewCostResponse:
        """Compute a bill, line by line."""
        asked = previews.from_proto_preview(request)
        now = self._clock.now()
        bill = await self._database.read(lambda conn: preview_cost.preview(conn, self._catalogs, asked, now))
        coming = None
        if request.with_next_invoice:
            coming = await self._operations.refusals.run(
                asked.account_id, lambda: self._operations.next_invoices.of_account(asked.account_id), _origin(context)
            )
        return previews.to_proto_bill(bill, coming)

    async def ListInvoices(
        self, request: subscription_pb2.ListInvoicesRequest, context: interceptors.Context
    ) -> subscription_pb2.ListInvoicesResponse:
        """List the account's invoices, newest first."""
        choice, page = invoices_conversions.from_proto_list(request)
        rows = await self._database.read(
            lambda conn: invoices_store.list_invoices(conn, choice, page.after, page.size + 1)
        )
        invoices, token = invoices_conversions.to_proto_list(rows, page)
        return subscription_pb2.ListInvoicesResponse(invoices=invoices, next_page_token=token)

    async def ListAlerts(
        self, request: subscription_pb2.ListAlertsRequest, context: interceptors.Context
    ) -> subscription_pb2.ListAlertsResponse:
        """List the account's alerts, newest first."""
        asked = alerts_conversions.from_proto_list(request)
        page = asked.page
        # One row more than the page's size shows whether there is a next page.
        found = await self._database.read(
            lambda conn: alerts_store.list_alerts(conn, asked.account_id, asked.choice, page.after, page.size + 1)
        )
        return alerts_conversions.to_proto_list(found, page)

    async def AcknowledgeAlert(
        self, request: subscription_pb2.AcknowledgeAlertRequest, context: interceptors.Context
    ) -> subscription_pb2.AcknowledgeAlertResponse:
        """Mark an alert as seen."""
        account_id, alert_id = alerts_conversions.from_proto_acknowledge(request)
        origin = _origin(context)
        now = self._clock.now()
        alert = await self._database.run(
            lambda conn: acknowledge_alert.acknowledge(conn, account_id, alert_id, origin, now)
        )
        return subscription_pb2.AcknowledgeAlertResponse(alert=alerts_conversions.to_proto_alert(alert))

    async def _subscription(self, account_id: str) -> subscription_pb2.Subscription:
        now = self._clock.now()

        async def work(
            conn: AsyncConnection,
        ) -> tuple[lookup.MeterState, list[subscription_records.SubscriptionRecord], Mapping[str, prices.CustomPrice]]:
            known = await lookup.read_account_state(conn, self._catalogs, account_id, now)
            rows = await subscription_records.plan_subscriptions(conn, account_id)
            return known, rows, await prices.custom_prices(conn, [row.custom_price_id for row in rows])

        known, rows, custom = await self._database.read(work)
        return subscriptions.to_proto_subscription(known.terms_at(now), known.facts.account_state, rows, custom, now)


def _origin(context: interceptors.Context) -> audit_store.Origin:
    call = interceptors.call_of(context)
    return audit_store.Origin(f"caller:{call.caller.name}", call.request_id)
