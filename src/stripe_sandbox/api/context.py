"""The transaction, time and request that a handler gets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from stripe_sandbox import errors, settings, state
from stripe_sandbox.api import forms, rendering
from stripe_sandbox.state import Json

API_VERSION = "2026-10-28.endive"

PAGE_SIZE = 10
PAGE_SIZE_MAX = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A transaction, the sandbox's time and the real time (unix seconds), and the request that is answered, if any."""

    work: state.Work
    now: int
    wall: float
    settings: settings.Settings
    request_id: str | None = None
    idempotency_key: str | None = None
    fault_seconds: float = 0.0
    """By how many seconds a fault delays the later effect of the request, such as the counting of its usage."""

    def delay_seconds(self, what: Literal["drafts", "meters", "search"]) -> int:
        """Return how long Stripe takes for something that it does by itself; see `settings.Delays`."""
        at_start: int = getattr(self.settings.delays, what)
        return self.work.fact(f"delay_{what}_seconds", at_start)

    def emit(self, event_type: str, subject: Json, previous: Json | None = None) -> None:
        """Store an event about the object `subject`, and queue it for the webhook, in the same transaction.

        `previous` holds the former values of the fields that changed.
        """
        data = {"object": rendering.render(self.work, subject)}
        if previous is not None:
            before = rendering.render(self.work, {**subject, **previous})
            data["previous_attributes"] = {name: before.get(name) for name in previous}
        event_id = state.new_id("evt")
        event = {
            "id": event_id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "livemode": False,
            "type": event_type,
            "data": data,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "pending_webhooks": 1 if self.settings.webhook_url else 0,
        }
        self.work.insert("event", event)
        self.queue(event_id)

    def queue(self, event_id: str) -> None:
        """Queue a stored event for the webhook, if the sandbox has a webhook URL."""
        if self.settings.webhook_url:
            self.work.connection.execute(
                "INSERT INTO deliveries (event, attempts, first_attempt_at, next_attempt_at) VALUES (?, 0, ?, ?)",
                (event_id, self.wall, self.wall),
            )

    def add(self, kind: str, body: Json, event_type: str | None = None) -> Json:
        """Store a new object, and emit an event of `event_type`; None: no event."""
        self.work.insert(kind, body)
        if event_type:
            self.emit(event_type, body)
        return body

    def update(self, stored: Json, changes: Json, event_type: str | None) -> Json:
        """Change fields of an object, and emit an event; without a change, do neither. `event_type` None: no event."""
        previous = {name: stored.get(name) for name, value in changes.items() if stored.get(name) != value}
        if not previous:
            return stored
        changed = self.work.replace({**stored, **changes})
        if event_type:
            self.emit(event_type, changed, previous)
        return changed

    def show(self, stored: Json, params: forms.Params) -> Json:
        """Return an object in the form of an answer, expanded as `expand[]` asks."""
        return rendering.render(self.work, stored, params.get("expand", ()))

    def show_list(self, kind: str, url: str, where: Mapping[str, Any], params: forms.Params) -> Json:
        """Return a page of objects in the form of an answer; `where` as in `Work.select`."""
        limit = params.get("limit", PAGE_SIZE)
        if not 1 <= limit <= PAGE_SIZE_MAX:
            raise errors.InvalidParameter(f"limit must be between 1 and {PAGE_SIZE_MAX}.", param="limit")
        for cursor in ("starting_after", "ending_before"):
            if cursor in params:
                self.work.get(kind, params[cursor], param=cursor)
        page = state.Page(limit, params.get("starting_after"), params.get("ending_before"))
        found = self.work.select(kind, where, page, params.get("created"))
        return rendering.render_page(self.work, found, url, params.get("expand", ()))
