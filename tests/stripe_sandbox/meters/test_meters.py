import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at
from tests.stripe_sandbox.conftest import Receiver

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

START = dt.datetime(2027, 4, 1, 10, 0, tzinfo=dt.UTC)


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, START) as made:
        yield made


async def summaries(billing: Billing, start: int, end: int, **more: object) -> list[tuple[int, float]]:
    params = {"customer": billing.customer, "start_time": start, "end_time": end, **more}
    page = await billing.api.billing.meters.event_summaries.list_async(billing.offer.meter, params)
    return [(each.start_time, each.aggregated_value) async for each in page.auto_paging_iter()]


async def test_usage_is_summed_up_by_time(billing: Billing) -> None:
    day = int(START.replace(hour=0).timestamp())
    for hours, units in ((-30, 1), (-1, 2), (9, 3), (9.5, 4)):
        await billing.use(units, timestamp=day + int(hours * 3600))
    assert await summaries(billing, day - 2 * DAY, day + DAY) == [(day - 2 * DAY, 10)]
    by_day = await summaries(billing, day - 2 * DAY, day + DAY, value_grouping_window="day", limit=2)
    assert by_day == [(day, 7), (day - DAY, 2), (day - 2 * DAY, 1)]
    by_hour = await summaries(billing, day + 8 * 3600, day + 10 * 3600, value_grouping_window="hour")
    assert [value for _, value in by_hour] == [7, 0]
    for start, more in ((day + 1, {}), (day + 60, {"value_grouping_window": "hour"})):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await summaries(billing, start, day + DAY, **more)
        assert caught.value.param == "start_time"


async def test_an_event_can_be_taken_back_within_a_day(billing: Billing) -> None:
    day = int(START.replace(hour=0).timestamp())
    for identifier in ("one", "two"):
        await billing.use(5, identifier=identifier)

    async def take_back(identifier: str) -> None:
        await billing.api.billing.meter_event_adjustments.create_async(
            {"event_name": "nyqst_pro_runs", "type": "cancel", "cancel": {"identifier": identifier}}
        )

    await take_back("one")
    assert await summaries(billing, day, day + DAY) == [(day, 5)]
    with pytest.raises(stripe.InvalidRequestError, match="No event found"):
        await take_back("one")
    await billing.advance(DAY)
    with pytest.raises(stripe.InvalidRequestError, match="within 24 hours"):
        await take_back("two")


async def test_a_meter_event_that_was_accepted_may_still_not_count(
    state_file: pathlib.Path, receiver: Receiver
) -> None:
    async with billing_at(state_file, START, receiver.url) as billing:
        made = await billing.subscribe()
        await billing.use(5, identifier="one")
        await billing.use(6, identifier="two")
        await billing.control("meter_errors", {"identifiers": ["one"], "code": "meter_event_invalid_value"})
        await billing.control("meter_errors", {"identifiers": ["elsewhere"], "code": "no_meter"})
        await receiver.until(
            lambda: (
                receiver.types()[-2:]
                == sorted(["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"])
            )
        )
        thin = next(each for each in receiver.accepted if each["type"].endswith("error_report_triggered"))
        assert (thin["object"], thin["related_object"]["id"], "data" in thin) == (
            "v2.core.event",
            billing.offer.meter,
            False,
        )
        fetched = (await billing.sandbox.http.get(f"/v2/core/events/{thin['id']}")).json()
        (kind,) = fetched["data"]["reason"]["error_types"]
        assert (kind["code"], kind["sample_errors"][0]["request"]["identifier"]) == ("meter_event_invalid_value", "one")
        await billing.advance_to(made.items.data[0].current_period_end)
        assert (await billing.invoices())[-1].total == 2000 + 6 * 50
