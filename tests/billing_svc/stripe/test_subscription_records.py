"""Stored subscriptions."""

from billing_svc.platform.database import tables
from billing_svc.stripe import subscription_records


def test_a_record_has_every_column_but_the_time_of_its_last_change() -> None:
    """A column that the record lacks would never be saved."""
    fields = set(subscription_records.SubscriptionRecord.__dataclass_fields__)
    assert fields - {"past"} == set(tables.subscriptions.c.keys()) - {"updated_at"}
