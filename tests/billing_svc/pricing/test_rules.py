"""Rounding, and lines by themselves."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_svc.catalog import loading
from billing_svc.pricing import rules
from tests.billing_svc.service import CATALOGS


@pytest.mark.parametrize(
    ("exact", "currency", "amount"),
    [
        ("0.015", "usd", "0.02"),  # Stripe's own example: 1.5 cents are charged as 2
        ("0.025", "usd", "0.03"),  # half up, not half even
        ("0.0149999999999", "usd", "0.01"),
        ("0", "usd", "0.00"),
        ("5.00001", "usd", "5.00"),
        ("1.5", "jpy", "2"),
        ("0.4999", "jpy", "0"),
        ("123456789012345678901234567.895", "usd", "123456789012345678901234567.90"),
    ],
)
def test_a_line_is_rounded_half_up_to_minor_units(exact: str, currency: str, amount: str) -> None:
    assert str(rules.rounded(Decimal(exact), currency)) == amount


@given(st.decimals(min_value=0, max_value=10**12, places=12, allow_nan=False))
def test_rounding_moves_a_line_by_half_a_cent_at_most(exact: Decimal) -> None:
    assert abs(rules.rounded(exact, "usd") - exact) <= Decimal("0.005")


def test_seats_multiply_a_price_by_the_seat_alone() -> None:
    orgs = loading.load_file(CATALOGS / "orgs.yaml")
    assert rules.base_line(orgs.plans["team"], "monthly", 7, "usd").amount == Decimal("105.00")
    nyqst = loading.load_file(CATALOGS / "nyqst.yaml")
    assert rules.base_line(nyqst.plans["pro"], "monthly", 7, "usd").amount == Decimal("20.00")
