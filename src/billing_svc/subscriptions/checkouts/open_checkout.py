"""Sells a plan: at most one open checkout page for each account, also with concurrent calls and crashes.

The steps, each safe to repeat: (1) a transaction refuses the order, finds the open page or stores the intent of a new
page; (2) the customer and the session are created at Stripe under stored keys; (3) a transaction stores the session. A
crash in between leaves the page `opening`, and the account's next call completes it.

Only Stripe knows whether a page can still be paid or was paid. So a page blocks the account's next page until Stripe
says that it expired, or until the subscription that it created is stored here. A late event therefore never lets a
customer pay twice.
"""

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, parts, versions
from billing_svc.customers import create_customer
from billing_svc.platform import clock, errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import client, intents, parse, prices, same_account, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.checkouts import close_checkout, store
from billing_svc.subscriptions.invoices import way_out
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription
from billing_svc.subscriptions.records import rules as records_rules

# Each round closes a page that blocks the order; more than a few rounds mean that callers work against each other.
ROUNDS_MAX = 4


@dataclass(frozen=True, slots=True)
class _Begun:
    """The account's only open page; `fits` says whether it is what was ordered."""

    page: store.CheckoutPage
    fits: bool


class Checkout:
    """Opens checkout pages."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        customers: create_customer.Customers,
        refresher: refresh_subscription.Refresher,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._customers = customers
        self._refresher = refresher
        self._requests = intents.Requests(database, stripe, now)
        self._clock = now

    async def open_page(self, order: store.CheckoutOrder, origin: audit_store.Origin) -> store.CheckoutPage:
        """Return the account's open page for an order; creates it unless an equal page is open.

        Raises PlanNotFound, PriceNotFound, PlanNotSold, PlanNotApplied, AlreadySubscribed, InvalidRequest on the
        quantity, RequestIdReused, LostRace, StripeUnavailable and StripeRefused.
        """
        for _ in range(ROUNDS_MAX):
            try:
                begun = await self._begin(order, origin)
            except errors.AlreadySubscribed:
                if not await self._has_ended(order.account_id, origin):
                    raise
                continue
            page: store.CheckoutPage | None = begun.page
            if begun.page.url is None:
                page = await self._make_session(begun.page, order, origin)
            if page is None or not (page.is_new or await self._is_payable(page, order.account_id, origin)):
                continue
            if begun.fits and page.expires_at is not None and self._clock.now() < page.expires_at:
                return page
            await self._expire(page, order.account_id, origin)
        raise errors.LostRace("other checkouts of this account were opened at the same time; send the same call again")

    async def _has_ended(self, account_id: str, origin: audit_store.Origin) -> bool:
        """Say whether the subscription that blocks an order has ended at Stripe; its event may never have come."""
        held = await self._database.read(lambda conn: _held(conn, account_id))
        if held is None:
            return True
        # If Stripe cannot be asked, the stored state stands.
        with contextlib.suppress(
            errors.StripeUnavailable,
            errors.LostRace,
            client.NotAtStripe,
            apply_subscription.CannotApply,
            apply_subscription.NotOurs,
        ):
            await self._refresher.refresh(held.subscription_id, origin)
        return await self._database.read(lambda conn: _held(conn, account_id)) is None

    async def _begin(self, order: store.CheckoutOrder, origin: audit_store.Origin) -> _Begun:
        now = self._clock.now()
        return await self._database.run(lambda conn: self._find_or_insert(conn, order, origin, now))

    async def _find_or_insert(
        self, conn: AsyncConnection, order: store.CheckoutOrder, origin: audit_store.Origin, now: datetime
    ) -> _Begun:
        """Refuse the order, or return the open page, or store the intent of a new page and return it."""
        version = await versions.newest_published(conn)
        catalog = await self._catalogs.get(conn, version)
        _, price = offered(catalog, order)
        await accounts_store.insert_missing(conn, {order.account_id}, now)
        await accounts_store.lock(conn, order.account_id)
        asked = request_ids.CallerRequest(order.account_id, order.request_id, "checkout", order.content)
        known = await request_ids.find(conn, asked) if order.request_id else None
        held = await _held(conn, order.account_id)
        if held is not None:
            found_out = await way_out.read(conn, held)
            advice = found_out.text or "; use ChangePlan"
            raise errors.AlreadySubscribed(
                f"the account is subscribed to {held.plan} ({held.status}){advice}; or cancel it first",
                {"plan": held.plan, "status": held.status, **found_out.metadata},
            )
        if order.request_id and known is None:
            await request_ids.remember(conn, asked, {}, now)
        found = await store.find_open(conn, order.account_id)
        if found is not None:
            return _Begun(found, found.sells(order, price, version))
        # This also fails, before anything is stored, if the prices are not at Stripe.
        await _line_items(conn, catalog.plans[order.plan], price, order.quantity, version)
        page = store.CheckoutPage(
            uuid.uuid4().hex,
            order.plan,
            price,
            order.quantity,
            order.success_url,
            order.cancel_url,
            version,
            session_id=None,
            url=None,
            expires_at=None,
            is_new=True,
        )
        await store.insert(conn, order.account_id, page, now)
        changes = {"checkout": page.checkout_id, "plan": page.plan, "price": page.price, "quantity": page.quantity}
        await audit_store.append(conn, origin, order.account_id, "checkout.created", changes, now)
        return _Begun(page, fits=True)

    async def _make_session(
        self, page: store.CheckoutPage, order: store.CheckoutOrder, origin: audit_store.Origin
    ) -> store.CheckoutPage | None:
        """Return the page with its session; None if Stripe refused the parameters that an earlier call stored.

        A page from an earlier call may be closed at Stripe already; then it is returned without its URL.
        """
        customer_id = await self._customers.ensure(order.account_id, order.customer_email, origin)
        params = await self._database.read(lambda conn: self._session_params(conn, page, order.account_id, customer_id))

        async def look_up(_since: datetime) -> client.Data | None:
            sessions = await self._stripe.checkout_sessions_of(customer_id)
            return next(
                (one for one in sessions if parse.nested(one, "metadata", "checkout_id") == page.checkout_id), None
            )

        intent = intents.Intent(order.account_id, f"checkout:{page.checkout_id}", "checkout.sessions.create", params)
        try:
            session = await self._requests.perform(intent, look_up)
        except errors.StripeRefused:
            await self._close(order.account_id, page.checkout_id, "expired", origin)
            if page.is_new:
                raise
            return None
        fields = parse.StripeFields.of(session, "checkout session")
        if fields.get("url") is None:
            return replace(page, session_id=fields.text("id"))
        opened = replace(
            page, session_id=fields.text("id"), url=fields.text("url"), expires_at=fields.instant("expires_at")
        )
        await self._database.run(lambda conn: store.open_session(conn, order.account_id, opened))
        return opened

    async def _session_params(
        self, conn: AsyncConnection, page: store.CheckoutPage, account_id: str, customer_id: str
    ) -> Mapping[str, Any]:
        catalog = await self._catalogs.get(conn, page.catalog_version)
        plan = catalog.plans[page.plan]
        # Stripe does not copy the session's metadata to the subscription, so both get it.
        metadata = {
            "account_id": account_id,
            "checkout_id": page.checkout_id,
            "plan": page.plan,
            "price": page.price,
            "catalog_version": str(page.catalog_version),
        }
        # An account gets a trial only with its first plan subscription that lived: an unpaid purchase uses up no trial.
        bought = await subscription_records.plan_subscriptions(conn, account_id)
        is_first = all(record.status in records_rules.STILLBORN for record in bought)
        trial = {"trial_period_days": plan.trial_days} if plan.trial_days and is_first else {}
        return {
            "mode": "subscription",
            "customer": customer_id,
            "client_reference_id": account_id,
            "line_items": await _line_items(conn, plan, page.price, page.quantity, page.catalog_version),
            "success_url": page.success_url,
            "cancel_url": page.cancel_url,
            "metadata": metadata,
            "subscription_data": {"metadata": metadata, **trial},
        }

    async def _is_payable(self, page: store.CheckoutPage, account_id: str, origin: audit_store.Origin) -> bool:
        """Say whether the page can still be paid; a page that is closed at Stripe is closed here too.

        Raises AlreadySubscribed if the page was paid and its subscription is not over.
        """
        try:
            session = await self._stripe.checkout_session(str(page.session_id))
        except client.NotAtStripe:
            await same_account.require(self._database, self._stripe, str(page.session_id))
            session = {"status": "expired"}
        if session.get("status") == "open":
            if parse.nested(session, "customer", "deleted") is True:
                raise errors.CustomerMissing(parse.id_of(session.get("customer"), "the customer of a checkout"))
            return True
        if session.get("status") == "complete":
            status = await self._status_of(session)
            if status is not None and status not in stripe_subscriptions.OVER:
                # The page stays open here until the worker has applied the subscription; the worker then closes it.
                raise errors.AlreadySubscribed(
                    "the account has just paid for a checkout; its subscription is about to appear",
                    {"plan": page.plan, "status": status},
                )
        state = "complete" if session.get("status") == "complete" else "expired"
        await self._close(account_id, page.checkout_id, state, origin)
        return False

    async def _status_of(self, session: client.Data) -> str | None:
        """Return the status of the subscription that a paid session created; None if it no longer exists."""
        subscription_id = parse.optional_id(session.get("subscription"))
        if subscription_id is None:
            return None
        try:
            return stripe_subscriptions.standing(await self._stripe.subscription(subscription_id)).status
        except client.NotAtStripe:
            return None

    async def _expire(self, page: store.CheckoutPage, account_id: str, origin: audit_store.Origin) -> None:
        """Expire a page with another order. If the page was paid meanwhile, `_is_payable` raises AlreadySubscribed."""

        async def look_up(_since: datetime) -> client.Data | None:
            session = await self._stripe.checkout_session(str(page.session_id))
            return session if session["status"] == "expired" else None

        intent = intents.Intent(
            account_id, f"expire:{page.checkout_id}", "checkout.sessions.expire", {"session": page.session_id}
        )
        try:
            await self._requests.perform(intent, look_up)
        except (errors.StripeRefused, client.NotAtStripe):
            # Stripe refuses if the page is no longer open, paid or expired.
            await self._is_payable(page, account_id, origin)
            return
        await self._close(account_id, page.checkout_id, "expired", origin)

    async def _close(self, account_id: str, checkout_id: str, state: str, origin: audit_store.Origin) -> None:
        now = self._clock.now()
        await self._database.run(lambda conn: close_checkout.close(conn, account_id, checkout_id, state, origin, now))


def offered(catalog: model.Catalog, order: store.CheckoutOrder) -> tuple[parts.Plan, str]:
    """Return an order's plan and price name. Raises the error for an order that the catalog does not allow."""
    plan = catalog.plans.get(order.plan)
    if plan is None:
        raise errors.PlanNotFound(f"plan: the catalog has no plan {order.plan!r}", {"plan": order.plan})
    if not plan.prices or not plan.sold:
        raise errors.PlanNotSold(f"plan: {order.plan} is not for sale", {"plan": order.plan})
    price = order.price or next(iter(plan.prices))
    if price not in plan.prices:
        metadata = {"plan": order.plan, "price": price}
        raise errors.PriceNotFound(f"price: plan {order.plan} has no price {price!r}", metadata)
    if problem := pricing_rules.quantity_problem(plan, price, order.quantity, catalog.currency):
        raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    return plan, price


async def _held(conn: AsyncConnection, account_id: str) -> subscription_records.SubscriptionRecord | None:
    """Return the plan subscription that blocks a purchase; None if all are over."""
    bought = await subscription_records.plan_subscriptions(conn, account_id)
    return next((record for record in bought if not record.is_over), None)


async def _line_items(
    conn: AsyncConnection, plan: parts.Plan, price: str, quantity: int, catalog_version: int
) -> list[dict[str, Any]]:
    """Return the base price and all metered prices, also pay-as-you-go's, so that its switch is local."""
    base = plan.base_lookup_key(price)
    metered = [metered_price.lookup_key for metered_price in plan.metered_prices]
    ids = await prices.prices_of_version(conn, [base, *metered], catalog_version)
    missing = sorted({base, *metered} - ids.keys())
    if missing:
        raise errors.PlanNotApplied(
            f"plan {plan.key} has no prices at Stripe yet; `billing-svc catalog apply` creates them",
            {"plan": plan.key, "price": price},
        )
    # Stripe does not accept a quantity for a metered price.
    return [{"price": ids[base], "quantity": quantity}, *({"price": ids[key]} for key in metered)]
