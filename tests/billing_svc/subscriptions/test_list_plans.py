import pytest

from billing.v1 import plan_pb2, subscription_pb2
from tests.billing_svc import refusals
from tests.billing_svc.service import Billing

CATALOG_NAMES = ("nyqst", "kalshibook", "orgs", "agentplatform", "automation")


async def plans(billing: Billing, **fields: object) -> subscription_pb2.ListPlansResponse:
    request = subscription_pb2.ListPlansRequest(**fields)  # type: ignore[arg-type]  # the message's fields
    return await billing.subscriptions.ListPlans(request)


@pytest.fixture(params=CATALOG_NAMES)
def catalog_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


EXPECTED = {
    "nyqst": ["free", "pro"],
    "kalshibook": ["free", "project"],
    "orgs": ["solo", "starter", "team", "business"],
    "agentplatform": ["free", "standard", "enterprise"],
    "automation": ["basic", "pro", "enterprise"],
}


async def test_each_catalog_is_listed_in_its_order_also_by_pages(billing: Billing, catalog_name: str) -> None:
    whole = await plans(billing)
    assert [plan.plan for plan in whole.plans] == EXPECTED[catalog_name]
    assert (whole.catalog, whole.currency, whole.next_page_token) == (catalog_name, "usd", "")
    defaults = [plan.plan for plan in whole.plans if plan.is_default]
    assert defaults == ([] if catalog_name == "automation" else [whole.default_plan])
    paged, token = [], ""
    while True:
        page = await plans(billing, page_size=1, page_token=token)
        assert len(page.plans) == 1
        paged += list(page.plans)
        token = page.next_page_token
        if not token:
            break
    assert paged == list(whole.plans)


class TestOneCatalog:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "nyqst"

    async def test_pro_tells_its_price_limits_and_overage(self, billing: Billing) -> None:
        pro = (await plans(billing)).plans[1]
        assert [(one.price, one.amount.amount, one.amount.currency) for one in pro.prices] == [
            ("monthly", "20.00", "usd")
        ]
        runs, reports = pro.limits
        assert (runs.meter, runs.included, runs.unlimited, runs.beyond) == ("runs", 200, False, plan_pb2.BEYOND_CHARGE)
        assert (runs.unit_price.amount, runs.unit_price_units) == ("0.50", 1)
        assert (reports.meter, reports.included, reports.unlimited) == ("reports", 0, True)
        assert (pro.sold, pro.is_default, pro.per_seat) == (True, False, False)

    async def test_bad_pages_are_refused(self, billing: Billing) -> None:
        for page_size in (-1, 501, -(2**31)):
            refusal = await refusals.refused(plans(billing, page_size=page_size))
            assert (refusal.code.name, refusal.fields) == ("INVALID_ARGUMENT", ("page_size",))
        for token in ("!!!", "x", "Z29sZA", "ÿ", "/w", "x" * 513):
            refusal = await refusals.refused(plans(billing, page_token=token))
            assert (refusal.code.name, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"), token
