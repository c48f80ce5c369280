"""Payment links: a seller makes a link in the dashboard, and everybody who opens it gets a checkout of their own."""

import re

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import checkout
from stripe_sandbox.state import Json

KIND = "payment_link"

_REFERENCE = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""A reference in a link's address; Stripe drops any other value without an error."""


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/payment_links, for subscriptions only."""
    lines = [_line(context, each, f"line_items[{index}]") for index, each in enumerate(params["line_items"])]
    data = params.get("subscription_data", {})
    items = checkout.line_items(context, lines)
    link_id = state.new_id("plink")
    link = {
        "id": link_id,
        "object": KIND,
        "active": True,
        "after_completion": _after_completion(params.get("after_completion")),
        "allow_promotion_codes": False,
        "application": None,
        "created": context.now,
        "currency": items[0]["currency"],
        "customer_creation": "always",
        "inactive_message": params.get("inactive_message"),
        "line_items": rendering.listed(items, f"/v1/payment_links/{link_id}/line_items"),
        "livemode": False,
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "payment_method_collection": params.get("payment_method_collection", "always"),
        "payment_method_types": None,
        "restrictions": None,
        "subscription_data": {
            "description": data.get("description"),
            "invoice_settings": None,
            "metadata": data.get("metadata", {}),
            "trial_period_days": data.get("trial_period_days"),
            "trial_settings": data.get("trial_settings"),
        },
        "url": f"{context.settings.public_url}/pay/{link_id}",
        "_lines": lines,
    }
    return context.show(context.add(KIND, link, "payment_link.created"), params)


def _line(context: Context, given: forms.Params, param: str) -> forms.Params:
    """Return a line for `checkout`. The SDK's type requires a quantity; it is ignored for a metered price."""
    if "price" not in given:
        param = f"{param}[price]"
        raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
    price = context.work.get("price", given["price"], param=f"{param}[price]")
    by_usage = (price["recurring"] or {}).get("usage_type") == "metered"
    return {"price": price["id"]} if by_usage else {"price": price["id"], "quantity": given["quantity"]}


def _after_completion(given: forms.Params | None) -> Json:
    if given and given["type"] == "redirect":
        return {"redirect": {"url": given["redirect"]["url"]}, "type": "redirect"}
    return {"hosted_confirmation": {"custom_message": None}, "type": "hosted_confirmation"}


def retrieve(context: Context, params: forms.Params, link_id: str) -> Json:
    """Answer GET /v1/payment_links/{id}."""
    return context.show(context.work.get(KIND, link_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/payment_links."""
    where = {"active": params["active"]} if "active" in params else {}
    return context.show_list(KIND, "/v1/payment_links", where, params)


def update(context: Context, params: forms.Params, link_id: str) -> Json:
    """Answer POST /v1/payment_links/{id}: an inactive link sells nothing."""
    link = context.work.get(KIND, link_id)
    changes: Json = {name: params[name] for name in ("active", "inactive_message") if name in params}
    changes["metadata"] = rules.merged_metadata(link["metadata"], params.get("metadata"))
    if "subscription_data" in params:
        given = params["subscription_data"].get("metadata")
        merged = rules.merged_metadata(link["subscription_data"]["metadata"], given)
        changes["subscription_data"] = {**link["subscription_data"], "metadata": merged}
    return context.show(context.update(link, changes, "payment_link.updated"), params)


def opened(context: Context, link_id: str, query: dict[str, str]) -> Json:
    """Return the checkout session of a visit. `query` has the parameters of the address. Raises Refused."""
    link = context.work.get(KIND, link_id)
    if not link["active"]:
        raise errors.Refused(link["inactive_message"] or "This link is no longer active.")
    reference = query.get("client_reference_id", "")
    email = query.get("prefilled_email") or query.get("locked_prefilled_email")
    params: Json = {
        "mode": "subscription",
        "line_items": link["_lines"],
        "metadata": link["metadata"],
        "subscription_data": {name: value for name, value in link["subscription_data"].items() if value is not None},
        "payment_method_collection": link["payment_method_collection"],
    }
    if _REFERENCE.fullmatch(reference):
        params["client_reference_id"] = reference
    if email:
        params["customer_email"] = email
    after = link["after_completion"]
    success_url = after["redirect"]["url"] if after["type"] == "redirect" else None
    return checkout.opened(context, {**params, "success_url": success_url}, payment_link=link_id)
