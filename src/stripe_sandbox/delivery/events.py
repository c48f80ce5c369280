"""Answers look-ups of events. `Context.emit` stores them, `delivery` sends them."""

from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json


def retrieve(context: Context, params: forms.Params, event_id: str) -> Json:
    """Answer GET /v1/events/{id}."""
    return context.show(context.work.get("event", event_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/events: events of one type, of several types, or all."""
    wanted = params.get("types") or params.get("type")
    return context.show_list("event", "/v1/events", {"type": wanted} if wanted else {}, params)
