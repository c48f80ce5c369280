"""StripeEventService: stores an event, then answers. The worker applies it later."""

from billing.v1 import stripe_event_pb2, stripe_event_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.inbox import rules, store
from billing_svc.platform import clock, errors
from billing_svc.platform.database import transactions


class StripeEventServicer(stripe_event_pb2_grpc.StripeEventServiceServicer):
    """Stores verified webhook events."""

    def __init__(self, database: transactions.Transactions, now: clock.Clock, *, livemode: bool) -> None:
        """`livemode` is the mode of our own key: events of the other mode are stored and ignored."""
        self._database = database
        self._clock = now
        self._livemode = livemode

    async def AcceptStripeEvent(
        self, request: stripe_event_pb2.AcceptStripeEventRequest, context: interceptors.Context
    ) -> stripe_event_pb2.AcceptStripeEventResponse:
        """Store an event; OK means that the event is committed."""
        now = self._clock.now()
        event = rules.parse(request.payload, now)
        if request.event_id not in {"", event.event_id}:
            raise errors.InvalidRequest([errors.FieldViolation("event_id", "differs from the payload's id")])
        ignored_because = event.ignored_because(livemode=self._livemode)
        stored = await self._database.run(lambda conn: store.insert(conn, event, ignored_because, now))
        return stripe_event_pb2.AcceptStripeEventResponse(stored=stored, duplicate=not stored)
