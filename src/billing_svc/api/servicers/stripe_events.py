"""StripeEventService: store, then answer. Applying is the worker's."""

from billing.v1 import stripe_event_pb2, stripe_event_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.inbox import rules, store
from billing_svc.platform import clock, errors
from billing_svc.platform.database import transactions


class StripeEventServicer(stripe_event_pb2_grpc.StripeEventServiceServicer):
    """Takes verified webhook events in."""

    def __init__(self, database: transactions.Transactions, now: clock.Clock, *, livemode: bool) -> None:
        """`livemode` is that of our own key: events of the other mode are kept and ignored."""
        self._database = database
        self._clock = now
        self._livemode = livemode

    async def AcceptStripeEvent(
        self, request: stripe_event_pb2.AcceptStripeEventRequest, context: interceptors.Context
    ) -> stripe_event_pb2.AcceptStripeEventResponse:
        """Keep an event; OK means that it is committed."""
        now = self._clock.now()
        event = rules.parse(request.payload, now)
        if request.event_id not in {"", event.event_id}:
            raise errors.InvalidRequest([errors.FieldViolation("event_id", "is not the payload's")])
        ignored_because = event.ignored_because(livemode=self._livemode)
        stored = await self._database.run(lambda conn: store.insert(conn, event, ignored_because, now))
        return stripe_event_pb2.AcceptStripeEventResponse(stored=stored, duplicate=not stored)
