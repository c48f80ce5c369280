"""Subscriptions, invoices and usage against the sandbox: nothing differs, until somebody makes it."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.platform.monitoring import store as monitoring_store
from billing_svc.reconciliation import reconcile
from tests.billing_svc.sandboxed import World

ORIGIN = audit_store.Origin("operator:test")


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


def comparison(world: World) -> reconcile.Comparison:
    return reconcile.Comparison(world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock)


async def found(world: World, account_id: str | None = None, *, fix: bool = False) -> list[tuple[str, str]]:
    return [(one.kind, one.account_id) for one in (await outcome(world, account_id, fix=fix)).findings]


async def outcome(
    world: World,
    account_id: str | None = None,
    *,
    fix: bool = False,
    **more: Any,  # noqa: ANN401 - of its own types
) -> reconcile.Outcome:
    return await comparison(world).run(ORIGIN, reconcile.Scope(account_id), reconcile.RunOptions(fix=fix, **more))


async def subscribed(world: World, *accounts: str) -> None:
    for account_id in accounts:
        await world.subscribe(account_id)
    await world.deliver_new()


async def test_what_agrees_is_nothing_to_tell(world: World) -> None:
    assert await found(world) == []
    await subscribed(world, "org_1", "org_2")
    assert await found(world) == []
    assert await found(world, "org_1") == []
    left, at = await world.billing.transactions.read(monitoring_store.last_reconciliation) or (None, None)
    assert left == 0
    assert at is not None


async def test_lost_events_are_found_and_mended(world: World) -> None:
    await subscribed(world, "org_1", "org_2")
    (row,) = await world.rows(tables.subscriptions, tables.subscriptions.c.account_id == "org_2")
    # Its events, and that of the invoice for the next month, never come.
    await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    assert await found(world) == [("subscription", "org_2")]
    assert await found(world, "org_1") == []
    before = await world.rows(tables.subscriptions)
    (finding,) = (await outcome(world, "org_2")).findings
    assert "cancel_at" in finding.detail
    assert await world.rows(tables.subscriptions) == before, "comparing changes nothing"
    assert await found(world, fix=True) == []
    assert (await world.subscription("org_2")).HasField("cancel_at")
    entries = await world.rows(tables.audit_log, tables.audit_log.c.actor == "operator:test")
    assert "subscription.applied" in {entry.action for entry in entries}


async def test_a_renewal_that_nobody_told_of_is_found_with_its_invoice(world: World) -> None:
    await subscribed(world, "org_1")
    await world.advance(timedelta(days=32), deliver=False)
    assert sorted(await found(world)) == [("invoice", "org_1"), ("subscription", "org_1")]
    assert await found(world, fix=True) == []
    assert len(await world.rows(tables.invoices)) == 2


async def test_rows_that_stripe_does_not_have_are_told(world: World) -> None:
    await subscribed(world, "org_1")
    await world.execute(sa.update(tables.subscriptions).values(subscription_id="sub_elsewhere"))
    await world.execute(sa.update(tables.invoices).values(invoice_id="in_elsewhere"))
    kinds = sorted(one.kind for one in (await outcome(world, "org_1")).findings)
    assert kinds == ["invoice", "invoice", "subscription", "subscription"]


async def test_reconciliation_compares_usage_too(world: World) -> None:
    await subscribed(world, "org_1")
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="e1", meter="runs", quantity=203)
    )
    assert await found(world) == [("usage: unsealed", "org_1")]
    assert await found(world, fix=True) == []
    left, _ = await world.billing.transactions.read(monitoring_store.last_reconciliation) or (None, None)
    assert left == 0
