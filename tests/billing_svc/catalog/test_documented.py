"""The example in docs/catalog.md is a catalog, and shows all there is."""

import re
from pathlib import Path

from billing_svc.catalog import loading, model
from billing_svc.metering.quota import rules

PAGE = (Path(__file__).parents[3] / "docs" / "catalog.md").read_text()
(EXAMPLE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_loads() -> None:
    assert list(loading.load_text(EXAMPLE, "docs/catalog.md").plans) == ["free", "pro", "team", "legacy"]


def test_the_example_has_every_key_and_every_policy() -> None:
    parts = (
        model.Catalog,
        model.Meter,
        model.Plan,
        model.Limit,
        model.Price,
        model.RateLimit,
        model.PayAsYouGo,
    )
    keys = {field.alias or name for part in parts for name, field in part.model_fields.items()}
    policies = {"deny", "grace", "charge", "allow", "unlimited", "consumable", "gauge", "calendar_month"}
    shown = set(re.findall(r"[a-z_]+", re.sub(r"#.*", "", EXAMPLE)))
    # A meter's name for people says nothing that the others do not.
    assert (keys | policies) - shown == {"display_name"}


def test_every_reason_is_explained() -> None:
    reasons = set(re.findall(r"`([A-Z_]+)`", PAGE))
    closed = rules.Reason.RESERVATION_CLOSED  # of a hold, not of a catalog
    assert {reason.value for reason in rules.Reason if reason not in {rules.Reason.NONE, closed}} <= reasons
