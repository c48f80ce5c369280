"""What the worker says of its queues is what stands in the tables."""

import json
from datetime import timedelta

import pytest

from billing.v1 import stripe_event_pb2
from billing_svc.platform.database import tables
from billing_svc.platform.monitoring import store
from tests.billing_svc.sandboxed import event_about
from tests.billing_svc.service import Billing


@pytest.fixture(name="received")
async def received_events(billing: Billing) -> None:
    """Two events that nobody applies."""
    for number in range(2):
        payload = json.dumps(
            event_about({"id": f"sub_{number}", "object": "subscription"}, "customer.subscription.updated")
        )
        await billing.events.AcceptStripeEvent(stripe_event_pb2.AcceptStripeEventRequest(payload=payload.encode()))


@pytest.mark.usefixtures("received")
async def test_the_oldest_waiting_event_is_the_lag(billing: Billing) -> None:
    now = billing.clock.now() + timedelta(minutes=5)
    found = {one.queue: one for one in await billing.transactions.read(store.backlogs)}
    assert set(found) == {"stripe_events", "usage_reports", "duties"}
    events = found["stripe_events"]
    assert (events.waiting, events.failed) == (2, 0)
    assert 299 < events.lag_seconds(now) < 360
    assert (found["usage_reports"].waiting, found["usage_reports"].lag_seconds(now)) == (0, 0.0)


@pytest.mark.usefixtures("received")
async def test_failed_events_are_counted_apart(billing: Billing) -> None:
    async with billing.engine.begin() as connection:
        await connection.execute(tables.stripe_events.update().values(state="failed", closed_at=billing.clock.now()))
    found = {one.queue: one for one in await billing.transactions.read(store.backlogs)}
    assert (found["stripe_events"].waiting, found["stripe_events"].failed) == (0, 2)
    assert found["stripe_events"].lag_seconds(billing.clock.now()) == 0.0
