import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, billing_at

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _coupon(billing: Billing, **terms: object) -> str:
    return str((await billing.api.coupons.create_async(terms)).id)


async def _renewed(billing: Billing, subscription_id: str) -> Any:  # noqa: ANN401 - the SDK's object
    end = (await billing.subscription(subscription_id)).items.data[0].current_period_end
    await billing.advance_to(end + 2 * HOUR)
    return (await billing.invoices())[-1]


def _sums(invoice: Any) -> tuple[int, int, int]:  # noqa: ANN401 - the SDK's object
    off = sum(each.amount for each in invoice.total_discount_amounts)
    assert off == sum(each.amount for line in invoice.lines.data for each in line.discount_amounts)
    return invoice.subtotal, off, invoice.total


async def test_a_percentage_is_taken_off_every_invoice_with_its_usage(billing: Billing) -> None:
    coupon = await _coupon(billing, percent_off=20, duration="forever")
    made = await billing.subscribe(discounts=[{"coupon": coupon}])
    assert len(made.discounts or []) == 1
    assert _sums((await billing.invoices())[0]) == (2000, 400, 1600)
    await billing.use(7)
    renewal = await _renewed(billing, made.id)
    assert (_sums(renewal), renewal.amount_paid) == ((2350, 470, 1880), 1880)
    preview = await billing.api.invoices.create_preview_async({"subscription": made.id})
    assert _sums(preview) == (2000, 400, 1600)
    shown = await billing.api.invoices.retrieve_async(renewal.id, {"expand": ["discounts"]})
    assert shown.discounts[0].source.coupon == coupon


@pytest.mark.parametrize(
    ("terms", "totals"),
    [
        ({"percent_off": 50, "duration": "once"}, [1000, 2000, 2000]),
        ({"percent_off": 50, "duration": "repeating", "duration_in_months": 2}, [1000, 1000, 2000]),
        ({"amount_off": 2500, "currency": "usd", "duration": "forever"}, [0, 0, 0]),
        ({"amount_off": 333, "currency": "usd", "duration": "once"}, [1667, 2000, 2000]),
    ],
)
async def test_a_discount_lasts_as_long_as_its_coupon_says(
    billing: Billing, terms: dict[str, object], totals: list[int]
) -> None:
    coupon = await _coupon(billing, **terms)
    made = await billing.subscribe({"price": billing.offer.base}, discounts=[{"coupon": coupon}])
    for _ in range(2):
        await _renewed(billing, made.id)
    assert [invoice.total for invoice in await billing.invoices()] == totals
    shown = await billing.subscription(made.id)
    assert len(shown.discounts or []) == (0 if terms["duration"] == "once" else 1)


async def test_a_customers_discount_counts_where_the_subscription_has_none(billing: Billing) -> None:
    coupon = await _coupon(billing, percent_off=10, duration="forever")
    await billing.control("discounts", {"customer": billing.customer, "coupon": coupon})
    customer = await billing.api.customers.retrieve_async(billing.customer)
    assert customer.discount.source.coupon == coupon
    made = await billing.subscribe({"price": billing.offer.base})
    assert (await billing.invoices())[0].total == 1800
    half = await _coupon(billing, percent_off=50, duration="forever")
    await billing.api.subscriptions.update_async(made.id, {"discounts": [{"coupon": half}]})
    assert (await _renewed(billing, made.id)).total == 1000
    await billing.api.subscriptions.update_async(made.id, {"discounts": ""})
    assert (await _renewed(billing, made.id)).total == 1800
    await billing.api.customers.delete_discount_async(billing.customer)
    assert (await _renewed(billing, made.id)).total == 2000


async def test_a_credit_for_unused_time_gives_back_only_what_was_charged(billing: Billing) -> None:
    coupon = await _coupon(billing, percent_off=25, duration="forever")
    made = await billing.subscribe({"price": billing.offer.base}, discounts=[{"coupon": coupon}])
    other = await billing.price(5000)
    preview = await billing.api.invoices.create_preview_async(
        {
            "subscription": made.id,
            "subscription_details": {
                "items": [{"id": made.items.data[0].id, "price": other}],
                "proration_behavior": "always_invoice",
                "proration_date": made.items.data[0].current_period_start,
            },
        }
    )
    assert sorted(line.amount for line in preview.lines.data) == [-1500, 3750]
    assert preview.total == 2250


async def test_a_promotion_code_and_a_phase_bring_a_discount(billing: Billing) -> None:
    coupon = await _coupon(billing, percent_off=30, duration="forever", max_redemptions=2)
    code = await billing.api.promotion_codes.create_async(
        {"promotion": {"type": "coupon", "coupon": coupon}, "code": "SPRING"}
    )
    made = await billing.subscribe({"price": billing.offer.base}, discounts=[{"promotion_code": code.id}])
    assert (await billing.invoices())[0].total == 1400
    schedule = await billing.api.subscription_schedules.create_async({"from_subscription": made.id})
    phase = schedule.phases[0]
    items = [{"price": billing.offer.base, "quantity": 1}]
    await billing.api.subscription_schedules.update_async(
        schedule.id,
        {
            "phases": [
                {"items": items, "start_date": phase.start_date, "end_date": phase.end_date},
                {"items": items, "discounts": [{"coupon": coupon}], "duration": {"interval": "month"}},
                {"items": items, "duration": {"interval": "month"}},
            ]
        },
    )
    assert (await _renewed(billing, made.id)).total == 1400
    assert (await _renewed(billing, made.id)).total == 2000
    with pytest.raises(stripe.InvalidRequestError, match="used up"):
        await billing.api.subscriptions.update_async(made.id, {"discounts": [{"coupon": coupon}]})


async def test_a_flat_tax_makes_the_total_differ_from_the_lines(billing: Billing) -> None:
    await billing.control("tax", {"percent": 19})
    coupon = await _coupon(billing, percent_off=50, duration="once")
    made = await billing.subscribe({"price": billing.offer.base}, discounts=[{"coupon": coupon}])
    [first] = await billing.invoices()
    assert (first.subtotal, first.total_excluding_tax, first.total, first.amount_paid) == (2000, 1000, 1190, 1190)
    assert [(tax.amount, tax.taxable_amount, tax.tax_behavior) for tax in first.total_taxes or []] == [
        (190, 1000, "exclusive")
    ]
    assert sum(line.amount for line in (await _renewed(billing, made.id)).lines.data) == 2000
    assert (await billing.invoices())[-1].total == 2380
