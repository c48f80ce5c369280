import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, amounts, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 4, 1, tzinfo=dt.UTC)) as made:
        yield made


async def scheduled(billing: Billing, made: stripe.Subscription, *items: dict[str, Any], **more: object) -> Any:  # noqa: ANN401 - as the API gives it
    """Schedule a change of the items for the period's end."""
    schedules = billing.api.subscription_schedules
    schedule = await schedules.create_async({"from_subscription": made.id})
    (present,) = schedule.phases
    kept = [
        {"price": item.price, **({"quantity": item.quantity} if "quantity" in item.to_dict() else {})}
        for item in present.items
    ]
    return await schedules.update_async(
        schedule.id,
        {
            "end_behavior": "release",
            "phases": [
                {"items": kept, "start_date": present.start_date, "end_date": present.end_date},
                {"items": list(items), "duration": {"interval": "month", "interval_count": 1}, **more},
            ],
        },
    )


async def test_a_change_at_the_periods_end_comes_with_the_renewal(billing: Billing) -> None:
    smaller, other = await billing.price(500), await billing.price(1)
    made = await billing.subscribe()
    schedule = await scheduled(
        billing, made, {"price": smaller}, {"price": other, "quantity": 3}, metadata={"plan": "s"}
    )
    assert (await billing.subscription(made.id)).schedule == schedule.id
    expanded = await billing.api.subscriptions.retrieve_async(made.id, {"expand": ["schedule"]})
    assert expanded.schedule.phases[1].items[1].quantity == 3
    await billing.use(8)
    end = made.items.data[0].current_period_end
    await billing.advance_to(end)
    await billing.use(2, timestamp=end - 1)
    changed = await billing.subscription(made.id)
    assert [(item.price.id, item.quantity) for item in changed.items.data] == [(smaller, 1), (other, 3)]
    assert changed.metadata["plan"] == "s"
    assert changed.items.data[0].current_period_start == end
    await billing.advance(3600)
    last = (await billing.invoices())[-1]
    assert (last.status, amounts(last)) == ("paid", [(3, 3), (500, 1), (500, 10)])
    await billing.advance_to(changed.items.data[0].current_period_end)
    released = await billing.api.subscription_schedules.retrieve_async(schedule.id)
    assert (released.status, released.released_subscription) == ("released", made.id)
    assert (await billing.subscription(made.id)).schedule is None
    await billing.advance(3600)
    assert amounts((await billing.invoices())[-1]) == [(3, 3), (500, 1)]


async def test_a_change_of_interval_counts_from_the_phases_start(billing: Billing) -> None:
    yearly = await billing.price(20000, "year")
    made = await billing.subscribe({"price": billing.offer.base})
    await scheduled(billing, made, {"price": yearly, "quantity": 1})
    end = made.items.data[0].current_period_end
    await billing.advance_to(end + 3600)
    changed = await billing.subscription(made.id)
    (item,) = changed.items.data
    assert (changed.billing_cycle_anchor, item.current_period_start) == (end, end)
    assert amounts((await billing.invoices())[-1]) == [(20000, 1)]


async def test_a_schedule_can_be_taken_back(billing: Billing) -> None:
    smaller = await billing.price(500)
    made = await billing.subscribe()
    schedule = await scheduled(billing, made, {"price": smaller})
    with pytest.raises(stripe.InvalidRequestError, match="already attached"):
        await billing.api.subscription_schedules.create_async({"from_subscription": made.id})
    with pytest.raises(stripe.InvalidRequestError, match="managed by the subscription schedule"):
        await billing.api.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    released = await billing.api.subscription_schedules.release_async(schedule.id)
    assert (released.status, (await billing.subscription(made.id)).schedule) == ("released", None)
    await billing.advance_to(made.items.data[0].current_period_end)
    assert (await billing.subscription(made.id)).items.data[0].price.id == billing.offer.base


async def test_a_schedule_can_end_its_subscription(billing: Billing) -> None:
    made, other = await billing.subscribe(), await billing.subscribe()
    schedules = billing.api.subscription_schedules
    first = await schedules.create_async({"from_subscription": made.id})
    await schedules.update_async(first.id, {"end_behavior": "cancel"})
    second = await schedules.create_async({"from_subscription": other.id})
    assert (await schedules.cancel_async(second.id)).status == "canceled"
    assert (await billing.subscription(other.id)).status == "canceled"
    await billing.advance_to(made.items.data[0].current_period_end)
    assert (await billing.subscription(made.id)).status == "canceled"
    assert (await schedules.retrieve_async(first.id)).status == "completed"


async def test_the_current_phase_of_a_schedule_cannot_be_changed(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    schedules = billing.api.subscription_schedules
    schedule = await schedules.create_async({"from_subscription": made.id})
    (present,) = schedule.phases
    for phase, param in (
        ({"start_date": present.start_date + 1, "end_date": present.end_date}, "phases[0][start_date]"),
        ({"start_date": present.start_date, "end_date": present.start_date}, "phases[0][end_date]"),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await schedules.update_async(
                schedule.id, {"phases": [{"items": [{"price": billing.offer.base, "quantity": 1}], **phase}]}
            )
        assert caught.value.param == param
    await billing.api.subscriptions.update_async(
        made.id, {"items": [{"id": made.items.data[0].id, "quantity": 4}], "proration_behavior": "none"}
    )
    assert (await schedules.retrieve_async(schedule.id)).phases[0].items[0].quantity == 4
