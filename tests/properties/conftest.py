"""The real server on a catalog with every policy; the environment sets how long Hypothesis searches."""

import os

import hypothesis
import pytest

from billing_svc.catalog import loading, versions
from billing_svc.platform.database import transactions as transactions_module
from tests import clocks
from tests.acceptance.accounts import START
from tests.properties import offers

# The number for `make test-all`; BILLING_PROPERTY_EXAMPLES=2000 searches for an hour.
EXAMPLES = int(os.environ.get("BILLING_PROPERTY_EXAMPLES", "50"))
STEPS = int(os.environ.get("BILLING_PROPERTY_STEPS", "50"))

hypothesis.settings.register_profile(
    "properties",
    deadline=None,  # a step makes several calls to a database
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)


@pytest.fixture
async def published_catalog(transactions: transactions_module.Transactions) -> int:
    catalog = loading.load_document(offers.document())
    version, _ = await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", START))
    return version


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(START)
