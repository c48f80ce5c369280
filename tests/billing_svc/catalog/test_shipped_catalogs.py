"""The five products: their files load and carry the numbers that were promised."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing_svc.catalog import checking, loading, model, parts
from billing_svc.pricing import rules as pricing_rules

CATALOGS = Path(__file__).parents[3] / "catalogs"
NAMES = ("agentplatform", "automation", "kalshibook", "nyqst", "orgs")


def load(name: str) -> model.Catalog:
    return loading.load_file(CATALOGS / f"{name}.yaml")


def limit_of(plan: parts.Plan, meter: str, *, pay_as_you_go: bool = False) -> parts.Limit:
    limit = plan.limit(meter, pay_as_you_go=pay_as_you_go)
    assert limit is not None
    return limit


def terms(plan: parts.Plan, meter: str, *, pay_as_you_go: bool = False) -> tuple[int | None, str | None, Decimal]:
    limit = limit_of(plan, meter, pay_as_you_go=pay_as_you_go)
    return limit.included_for(1), limit.beyond, limit.unit_price_exact


def deny(included: int) -> tuple[int, str, Decimal]:
    return included, "deny", Decimal(0)


def charge(included: int, unit_price: str) -> tuple[int, str, Decimal]:
    return included, "charge", Decimal(unit_price)


UNLIMITED = (None, None, Decimal(0))


def test_every_file_is_one_of_the_five_and_named_after_its_catalog() -> None:
    assert sorted(path.stem for path in CATALOGS.glob("*.yaml")) == list(NAMES)
    assert [load(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_names_its_schema(name: str) -> None:
    first = (CATALOGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./catalog.schema.json"


def test_the_committed_schema_is_current() -> None:
    """Write `checking.json_schema_text()` to the file if the model was changed on purpose."""
    assert (CATALOGS / "catalog.schema.json").read_text() == checking.json_schema_text()


def test_nyqst_sells_runs_beyond_the_included_ones() -> None:
    catalog = load("nyqst")
    free, pro = catalog.plan("free"), catalog.plan("pro")
    assert catalog.default is free
    assert terms(free, "runs") == deny(5)
    assert terms(free, "reports") == deny(2)
    assert terms(pro, "runs") == charge(200, "0.50")
    assert terms(pro, "reports") == UNLIMITED
    assert catalog.minor_units(pro.prices["monthly"]) == 2000
    assert pro.base_lookup_key("monthly") == "nyqst_pro_monthly"
    assert [metered.lookup_key for metered in pro.metered_prices] == ["nyqst_pro_runs"]


def test_kalshibook_sells_credits() -> None:
    catalog = load("kalshibook")
    free, project = catalog.plan("free"), catalog.plan("project")
    assert [catalog.meter_of_operation(name) for name in ("markets", "deltas", "orderbook")] == [
        ("credits", 1),
        ("credits", 2),
        ("credits", 5),
    ]
    assert terms(free, "credits") == deny(1000)
    assert terms(free, "credits", pay_as_you_go=True) == charge(1000, "0.008")
    assert terms(project, "credits") == deny(4000)
    assert terms(project, "credits", pay_as_you_go=True) == charge(4000, "0.008")
    assert catalog.minor_units(project.prices["monthly"]) == 3000
    rates = [plan.rate_limit_for(pay_as_you_go=on) for plan in (free, project) for on in (False, True)]
    assert [(rate.requests, rate.window) for rate in rates if rate is not None] == [
        (requests, timedelta(minutes=1)) for requests in (30, 60, 120, 120)
    ]
    assert free.charged(pay_as_you_go=False) == ()
    assert [metered.lookup_key for metered in free.metered_prices] == ["kalshibook_free_payg_credits"]


def test_orgs_sells_seats_and_scales_with_them() -> None:
    catalog = load("orgs")
    assert [key for key, plan in catalog.plans.items() if plan.per_seat] == ["starter", "team", "business"]
    for key in ("starter", "team", "business"):
        plan = catalog.plan(key)
        assert next(iter(plan.prices)) == "monthly"
        assert all(price.per_seat for price in plan.prices.values())
        assert limit_of(plan, "members").included_for(7) == 7
    assert limit_of(catalog.plan("starter"), "projects").included_for(7) == 10
    assert limit_of(catalog.plan("team"), "exports").included_for(3) == 600


def test_agentplatform_sells_usage_and_levels() -> None:
    catalog = load("agentplatform")
    meters = ("llm_tokens", "agent_executions", "api_calls", "storage_gb", "user_seats")
    assert tuple(catalog.meters) == meters
    assert [meter.kind for meter in catalog.meters.values()] == ["consumable"] * 3 + ["gauge"] * 2
    assert catalog.alert_percents == (80, 100, 120)
    assert catalog.grace_period == timedelta(hours=24)
    free, standard, enterprise = catalog.plans.values()
    assert [terms(free, meter) for meter in meters] == [
        *((included, "grace", Decimal(0)) for included in (10_000, 100, 1_000)),
        deny(1),
        deny(3),
    ]
    assert [terms(standard, meter) for meter in meters] == [
        charge(1_000_000, "0.00001"),
        charge(5_000, "0.10"),
        charge(100_000, "0.001"),
        charge(100, "0.50"),
        charge(25, "5"),
    ]
    assert [terms(enterprise, meter) for meter in meters] == [
        charge(10_000_000, "0.000005"),
        charge(50_000, "0.05"),
        charge(1_000_000, "0.0005"),
        charge(1_000, "0.25"),
        UNLIMITED,
    ]
    assert [catalog.minor_units(plan.prices["monthly"]) for plan in (standard, enterprise)] == [9900, 49900]


def test_a_month_on_agentplatform_standard_costs_exactly_186_50() -> None:
    plan = load("agentplatform").plan("standard")
    used = {
        "llm_tokens": 1_500_000,
        "agent_executions": 5_500,
        "api_calls": 120_000,
        "storage_gb": 105,
        "user_seats": 27,
    }
    lines = []
    for meter, units in used.items():
        limit = limit_of(plan, meter)
        included = limit.included_for(1)
        assert included is not None
        lines.append(pricing_rules.overage(limit, units - included))
    assert lines == [Decimal(5), Decimal(50), Decimal(20), Decimal("2.50"), Decimal(10)]
    assert plan.prices["monthly"].amount + sum(lines) == Decimal("186.50")


def test_automation_sells_three_plans_without_a_default() -> None:
    catalog = load("automation")
    meters = ("tokens", "api_calls", "scraping_tasks")
    assert catalog.default_plan == "none"
    assert (catalog.default.key, catalog.default.limits, catalog.default.prices) == ("none", {}, {})
    assert all(plan.quota_period == "calendar_month" for plan in catalog.plans.values())
    assert [terms(catalog.plan("basic"), meter) for meter in meters] == [deny(100_000), deny(1_000), deny(100)]
    assert [terms(catalog.plan("pro"), meter) for meter in meters] == [deny(1_000_000), deny(10_000), deny(1_000)]
    assert [terms(catalog.plan("enterprise"), meter) for meter in meters] == [UNLIMITED] * 3
    assert not any(plan.metered_prices for plan in catalog.plans.values())


def test_a_summary_has_a_row_for_each_plan_and_meter_and_its_overlay() -> None:
    rows = checking.summary_rows(load("kalshibook"))
    assert [(row.plan, row.prices, row.rate_limit, row.included, row.beyond) for row in rows] == [
        ("free (default)", "-", "30/minute", "1,000", "deny"),
        ("free + pay as you go", "-", "60/minute", "1,000", "charge 0.008 usd"),
        ("project", "30.00 usd/month", "120/minute", "4,000", "deny"),
        ("project + pay as you go", "-", "120/minute", "4,000", "charge 0.008 usd"),
    ]
    seats = checking.summary_rows(load("orgs"))
    assert ("8.00 usd/month per seat, 80.00 usd/year per seat", "1 per seat") in {
        (row.prices, row.included) for row in seats
    }
