"""Answers requests about single items of a subscription; each change is an update of the subscription."""

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, subscriptions

ITEM = ("price", "quantity", "metadata")
CHANGE = ("proration_behavior", "proration_date", "payment_behavior")


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/subscription_items: adds an item to a subscription."""
    before = context.work.get("subscription", params["subscription"], param="subscription")
    if before["status"] in endings.OVER:
        raise errors.Refused("The subscription is over; nothing can be added to it.", param="subscription")
    known = {item["id"] for item in before["items"]["data"]}
    after = _updated(context, before, _given(params, ITEM), params)
    made = next((item for item in after["items"]["data"] if item["id"] not in known), None)
    if made is None:
        # With `pending_if_incomplete` the item is not there before its payment.
        raise errors.Refused("The payment for the item was not made, so that it was not added.", code="card_declined")
    return _shown(context, made, params)


def retrieve(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer GET /v1/subscription_items/{id}."""
    return _shown(context, _item(_of(context, item_id), item_id), params)


def update(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer POST /v1/subscription_items/{id}."""
    before = _of(context, item_id)
    after = _updated(context, before, {"id": item_id, **_given(params, ITEM)}, params)
    return _shown(context, _item(after, item_id), params)


def delete(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer DELETE /v1/subscription_items/{id}; the last item of a subscription cannot be deleted."""
    _updated(context, _of(context, item_id), {"id": item_id, "deleted": True}, params)
    return {"id": item_id, "object": "subscription_item", "deleted": True}


def _given(params: forms.Params, names: tuple[str, ...]) -> forms.Params:
    return {name: params[name] for name in names if name in params}


def _updated(context: Context, subscription: Json, item: forms.Params, params: forms.Params) -> Json:
    return subscriptions.updated(context, subscription, {"items": [item], **_given(params, CHANGE)})


def _of(context: Context, item_id: str) -> Json:
    """Return the subscription of an item. Raises NotFound."""
    row = context.work.connection.execute(
        "SELECT objects.id FROM objects, json_each(objects.body, '$.items.data') AS item"
        " WHERE objects.kind = 'subscription' AND json_extract(item.value, '$.id') = ?",
        (item_id,),
    ).fetchone()
    if row is None:
        raise errors.NotFound(f"No such subscription_item: '{item_id}'", param="id", code="resource_missing")
    return context.work.get("subscription", row[0])


def _item(subscription: Json, item_id: str) -> Json:
    found: Json = next(item for item in subscription["items"]["data"] if item["id"] == item_id)
    return found


def _shown(context: Context, item: Json, params: forms.Params) -> Json:
    return context.show(item, params)
