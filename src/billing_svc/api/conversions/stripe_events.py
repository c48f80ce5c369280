"""Converts events of the inbox to and from their messages."""

from collections.abc import Mapping, Sequence

from billing.v1 import admin_pb2, stripe_event_pb2
from billing_svc.api import fields, paging
from billing_svc.inbox import replay_events, rules, store

TYPE_LENGTH_MAX = 128
EVENT_IDS_MAX = 500

_STATES: "Mapping[str, stripe_event_pb2.StripeEventState.ValueType]" = {
    "waiting": stripe_event_pb2.STRIPE_EVENT_STATE_PENDING,
    "applied": stripe_event_pb2.STRIPE_EVENT_STATE_APPLIED,
    "ignored": stripe_event_pb2.STRIPE_EVENT_STATE_IGNORED,
    "failed": stripe_event_pb2.STRIPE_EVENT_STATE_FAILED,
}
_FILTERS = {state: word for word, state in _STATES.items()}


def from_proto_list(request: admin_pb2.ListStripeEventsRequest) -> tuple[store.EventFilter, paging.Page]:
    """Return which events are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    if request.account_id:
        check.account_id(request.account_id)
    check.optional_identifier("object_id", request.object_id, rules.ID_LENGTH_MAX)
    choice = _choice(request, check, object_id=request.object_id, account_id=request.account_id)
    return choice, paging.from_proto(request, check, ("stripe events", choice), paging.instant, str)


def to_proto_list(rows: Sequence[store.InboxEvent], page: paging.Page) -> admin_pb2.ListStripeEventsResponse:
    """Return a page; `rows` has one element more than the page if there is a next page."""
    shown, token = page.cut(rows, lambda row: (row.received_at.isoformat(), row.event_id))
    return admin_pb2.ListStripeEventsResponse(events=[to_proto_event(row) for row in shown], next_page_token=token)


def to_proto_events(rows: Sequence[store.InboxEvent]) -> admin_pb2.ListStripeEventsResponse:
    """Return rows as a list without a next page."""
    return admin_pb2.ListStripeEventsResponse(events=[to_proto_event(row) for row in rows])


def to_proto_event(row: store.InboxEvent) -> stripe_event_pb2.StripeEvent:
    """Return an event's state, without its payload."""
    is_done = row.state in {"applied", "ignored"}
    return stripe_event_pb2.StripeEvent(
        event_id=row.event_id,
        type=row.type,
        # An event that names no object is stored with its own id as object.
        object_id="" if row.object_id == row.event_id else row.object_id,
        account_id=row.account_id,
        state=_STATES[row.state],
        attempts=row.attempts,
        error=row.note or "",
        created_at=fields.to_proto_instant(row.created_at),
        received_at=fields.to_proto_instant(row.received_at),
        applied_at=fields.to_proto_instant(row.closed_at if is_done else None),
        next_attempt_at=fields.to_proto_instant(row.next_attempt_at if row.state == "waiting" else None),
        livemode=row.livemode,
        api_version=row.api_version or "",
    )


def from_proto_replay(request: admin_pb2.ReplayStripeEventsRequest) -> replay_events.Replay:
    """Return the requested replay. Raises InvalidRequest."""
    check = fields.Fields()
    choice = _choice(request, check)
    if len(request.event_ids) > EVENT_IDS_MAX:
        check.refuse("event_ids", f"has {len(request.event_ids)} entries; at most {EVENT_IDS_MAX} are allowed")
    else:
        for position, event_id in enumerate(request.event_ids):
            check.identifier(f"event_ids[{position}]", event_id, rules.ID_LENGTH_MAX)
    if bool(request.event_ids) == (choice != store.EventFilter()):
        check.refuse("event_ids", "give either event_ids, or at least one filter")
    if not request.preview:
        check.identifier("request_id", request.request_id)
    check.done()
    return replay_events.Replay(tuple(dict.fromkeys(request.event_ids)), choice, request.request_id)


def to_proto_replayed(replayed: replay_events.Replayed) -> admin_pb2.ReplayStripeEventsResponse:
    """Return how many events wait again."""
    return admin_pb2.ReplayStripeEventsResponse(replayed=replayed.count, more=replayed.more)


def _choice(
    request: admin_pb2.ListStripeEventsRequest | admin_pb2.ReplayStripeEventsRequest,
    check: fields.Fields,
    *,
    object_id: str = "",
    account_id: str = "",
) -> store.EventFilter:
    state = ""
    if request.state != stripe_event_pb2.STRIPE_EVENT_STATE_UNSPECIFIED:
        state = _FILTERS.get(request.state, "")
        if not state:
            check.refuse("state", f"is {request.state}, which is not a value of StripeEventState")
    check.optional_identifier("type", request.type, TYPE_LENGTH_MAX)
    since, before = None, None
    if request.HasField("received_from"):
        since = check.instant("received_from", request.received_from)
    if request.HasField("received_before"):
        before = check.instant("received_before", request.received_before)
    return store.EventFilter(state, request.type, object_id, account_id, since, before)
