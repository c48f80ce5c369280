"""The customer portal: its configurations, its sessions, and the actions of a customer."""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import charging
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, subscriptions

CONFIGURATION, SESSION = "billing_portal.configuration", "billing_portal.session"

OPEN_SECONDS = 3600
"""How long a session's page can be used."""

SHOWN_MAX = 100
"""The most invoices on the page."""

REASONS = (
    *("customer_service", "low_quality", "missing_features", "other"),
    *("switched_service", "too_complex", "too_expensive", "unused"),
)

FLOWS = ("payment_method_update", "subscription_cancel")
"""The flows that lead directly to one action of the page."""


def create_configuration(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing_portal/configurations."""
    configuration: Json = {
        "id": state.new_id("bpc"),
        "object": CONFIGURATION,
        "active": True,
        "application": None,
        "business_profile": {"headline": None, "privacy_policy_url": None, "terms_of_service_url": None},
        "created": context.now,
        "default_return_url": None,
        "features": _features({}, {}),
        # Stripe's default configuration comes from its dashboard, which the sandbox does not have.
        "is_default": False,
        "livemode": False,
        "login_page": {"enabled": False, "url": None},
        "metadata": {},
        "name": None,
        "updated": context.now,
    }
    made = {**configuration, **_changes(context, configuration, params)}
    return context.show(context.add(CONFIGURATION, made, f"{CONFIGURATION}.created"), params)


def update_configuration(context: Context, params: forms.Params, configuration_id: str) -> Json:
    """Answer POST /v1/billing_portal/configurations/{id}."""
    stored = context.work.get(CONFIGURATION, configuration_id)
    changes = _changes(context, stored, params)
    if any(stored[name] != value for name, value in changes.items()):
        changes["updated"] = context.now
    return context.show(context.update(stored, changes, f"{CONFIGURATION}.updated"), params)


def retrieve_configuration(context: Context, params: forms.Params, configuration_id: str) -> Json:
    """Answer GET /v1/billing_portal/configurations/{id}."""
    return context.show(context.work.get(CONFIGURATION, configuration_id), params)


def list_configurations(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/billing_portal/configurations."""
    where: Json = {name: params[name] for name in ("active", "is_default") if name in params}
    return context.show_list(CONFIGURATION, "/v1/billing_portal/configurations", where, params)


def _changes(context: Context, stored: Json, params: forms.Params) -> Json:
    changes: Json = {"metadata": rules.merged_metadata(stored["metadata"], params.get("metadata"))}
    for name in ("name", "default_return_url"):
        if name in params:
            changes[name] = params[name] or None
    if "active" in params:
        changes["active"] = params["active"]
    if "business_profile" in params:
        given = {name: value or None for name, value in params["business_profile"].items()}
        changes["business_profile"] = {**stored["business_profile"], **given}
    if params.get("login_page", {}).get("enabled"):
        raise _unsupported("login_page[enabled]")
    if "features" in params:
        _check_features(context, params["features"])
        changes["features"] = _features(stored["features"], params["features"])
    return changes


def _features(stored: Json, given: forms.Params) -> Json:
    """Return all features: as given, else as stored, else switched off."""
    nothing: Json = {
        "customer_update": {"allowed_updates": [], "enabled": False},
        "invoice_history": {"enabled": False},
        "payment_method_update": {"enabled": False, "payment_method_configuration": None},
        "subscription_cancel": {
            "cancellation_reason": {"enabled": False, "feedback_options": None, "options": list(REASONS)},
            "enabled": False,
            "mode": "at_period_end",
            "proration_behavior": "none",
        },
        "subscription_pause": {"enabled": False},
        "subscription_update": {
            "billing_cycle_anchor": None,
            "default_allowed_updates": [],
            "enabled": False,
            "products": None,
            "proration_behavior": "none",
            "schedule_at_period_end": {"conditions": []},
            "trial_update_behavior": "end_trial",
        },
    }
    return {name: {**nothing[name], **stored.get(name, {}), **_cleared(given.get(name, {}))} for name in nothing}


def _cleared(given: forms.Params) -> forms.Params:
    return {name: ([] if name != "products" else None) if value == "" else value for name, value in given.items()}


def _check_features(context: Context, given: forms.Params) -> None:
    update = given.get("subscription_update", {})
    if update.get("enabled") and not update.get("products"):
        param = "features[subscription_update][products]"
        raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
    for index, offered in enumerate(update.get("products") or ()):
        _check_offered(context, offered, f"features[subscription_update][products][{index}]")


def _check_offered(context: Context, offered: forms.Params, param: str) -> None:
    """Check a product to which customers may switch: the prices must belong to it, at most one for each interval."""
    context.work.get("product", offered["product"], param=f"{param}[product]")
    intervals: list[tuple[str, int]] = []
    for price_id in offered["prices"]:
        price = context.work.get("price", price_id, param=f"{param}[prices]")
        if price["product"] != offered["product"] or not price["recurring"]:
            raise errors.Refused(
                f"The price {price_id} is no recurring price of that product.", param=f"{param}[prices]"
            )
        intervals.append((price["recurring"]["interval"], price["recurring"]["interval_count"]))
    if len(set(intervals)) < len(intervals):
        raise errors.Refused(
            "A product may not have two prices of the same billing interval in a portal configuration.",
            param=f"{param}[prices]",
        )


def create_session(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing_portal/sessions."""
    if "customer" not in params:
        raise errors.InvalidParameter("Missing required param: customer.", param="customer", code="parameter_missing")
    customer = context.work.get("customer", params["customer"], param="customer")
    if customer.get("deleted"):
        raise errors.Refused(f"No such customer: '{customer['id']}'", param="customer", code="resource_missing")
    if "configuration" not in params:
        raise errors.Refused(
            "No configuration provided and your test mode default configuration has not been created. Provide a"
            " configuration.",
            param="configuration",
        )
    configuration = context.work.get(CONFIGURATION, params["configuration"], param="configuration")
    if not configuration["active"]:
        raise errors.Refused("This configuration is inactive and cannot be used.", param="configuration")
    session_id = state.new_id("bps")
    session: Json = {
        "id": session_id,
        "object": SESSION,
        "configuration": configuration["id"],
        "created": context.now,
        "customer": customer["id"],
        "customer_account": None,
        "flow": _flow(context, customer, configuration, params.get("flow_data")),
        "livemode": False,
        "locale": params.get("locale"),
        "on_behalf_of": None,
        "return_url": params.get("return_url") or configuration["default_return_url"],
        "url": f"{context.settings.public_url}/portal/{session_id}",
    }
    return context.show(context.add(SESSION, session, f"{SESSION}.created"), params)


def _flow(context: Context, customer: Json, configuration: Json, given: forms.Params | None) -> Json | None:
    if given is None:
        return None
    if given["type"] not in FLOWS:
        raise _unsupported("flow_data[type]")
    if not configuration["features"][given["type"]]["enabled"]:
        raise errors.Refused(
            f"The feature {given['type']} is not enabled in the portal configuration.", param="flow_data[type]"
        )
    cancelling = given.get("subscription_cancel")
    if given["type"] == "subscription_cancel":
        param = "flow_data[subscription_cancel][subscription]"
        if not cancelling:
            raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
        _own(context, "subscription", cancelling["subscription"], customer["id"], param)
    after = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"}
    return {
        "after_completion": {**after, **given.get("after_completion", {})},
        "subscription_cancel": {"retention": None, **cancelling} if cancelling else None,
        "subscription_update": None,
        "subscription_update_confirm": None,
        "type": given["type"],
    }


def _unsupported(param: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(
        f"The sandbox does not know this value of '{param}', though Stripe does.",
        param=param,
        code="sandbox_unsupported",
    )


def _own(context: Context, kind: str, object_id: str, customer_id: str, param: str | None = None) -> Json:
    found = context.work.get(kind, object_id, param=param)
    if found["customer"] != customer_id:
        raise errors.Refused(f"No such {kind}: '{object_id}'", param=param, code="resource_missing")
    return found


class Visit:
    """The actions of a customer in a portal session. Raises NotFound; Refused if the session has expired."""

    def __init__(self, context: Context, session_id: str) -> None:
        self._context = context
        self.session = context.work.get(SESSION, session_id)
        if context.now >= self.session["created"] + OPEN_SECONDS:
            raise errors.Refused("This portal session has expired; ask for another one.")
        self.customer_id: str = self.session["customer"]
        self.features: Json = context.work.get(CONFIGURATION, self.session["configuration"])["features"]

    def subscriptions(self) -> list[Json]:
        """Return the customer's subscriptions that have not ended."""
        return endings.living(self._context, self.customer_id)

    def invoices(self) -> list[Json]:
        """Return the customer's finalised invoices, the newest first."""
        found, _ = self._context.work.select("invoice", {"customer": self.customer_id}, state.Page(SHOWN_MAX))
        return [invoice for invoice in found if invoice["status"] not in {"draft", "void"}]

    def card(self) -> Json | None:
        """Return the card that is charged; None if there is none."""
        named = (each["default_payment_method"] for each in self.subscriptions())
        return payment_methods.default_of(self._context, self.customer_id, named=next(filter(None, named), None))

    def change_card(self, choice: str) -> None:
        """Replace or remove the card. Raises Refused."""
        self._require("payment_method_update")
        if choice not in {*payment_methods.CHOICES, "none"}:
            raise errors.Refused("There is no such card.")
        payment_methods.change(self._context, self.customer_id, choice)  # type: ignore[arg-type] # just checked

    def cancel(self, subscription_id: str, feedback: str | None = None) -> Json:
        """End a subscription at its period's end or at once, as the configuration says. Raises Refused."""
        how = self._require("subscription_cancel")
        subscription = self._living(subscription_id)
        details = {"feedback": feedback} if feedback in how["cancellation_reason"]["options"] else {}
        if how["mode"] == "at_period_end":
            return endings.cancel_at_end(self._context, subscription, details)
        prorates = how["proration_behavior"] != "none"
        invoiced = how["proration_behavior"] == "always_invoice"
        return subscriptions.canceled(self._context, subscription, details, invoice_now=invoiced, prorates=prorates)

    def renew(self, subscription_id: str) -> Json:
        """Cancel the scheduled end of a subscription. Raises Refused."""
        self._require("subscription_cancel")
        return endings.keep(self._context, self._living(subscription_id))

    def pay(self, invoice_id: str) -> Json:
        """Pay an open invoice. Raises CardDeclined and Refused."""
        self._require("invoice_history")
        invoice = _own(self._context, "invoice", invoice_id, self.customer_id)
        return charging.pay(self._context, invoice) if invoice["status"] == "open" else invoice

    def _require(self, feature: str) -> Any:  # noqa: ANN401 - JSON
        if not self.features[feature]["enabled"]:
            raise errors.Refused("This is not offered here.")
        return self.features[feature]

    def _living(self, subscription_id: str) -> Json:
        subscription = _own(self._context, "subscription", subscription_id, self.customer_id)
        if subscription["status"] in endings.OVER:
            raise errors.Refused("This subscription is over.")
        return subscription
