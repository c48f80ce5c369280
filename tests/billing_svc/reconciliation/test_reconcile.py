"""Subscriptions, invoices and usage against the sandbox: nothing differs, until somebody makes it."""

import asyncio
import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.platform.monitoring import store as monitoring_store
from billing_svc.reconciliation import reconcile
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.sandboxed import World

ORIGIN = audit_store.Origin("operator:test")


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


def comparison(world: World) -> reconcile.Comparison:
    return reconcile.Comparison(world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock)


async def found(world: World, account_id: str | None = None, *, fix: bool = False) -> list[tuple[str, str]]:
    return [(one.kind, one.account_id) for one in await comparison(world).run(ORIGIN, account_id, fix=fix)]


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
    (finding,) = await comparison(world).run(ORIGIN, "org_2", fix=False)
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
    kinds = sorted(one.kind for one in await comparison(world).run(ORIGIN, "org_1", fix=False))
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


async def test_the_command_shows_a_table_an_exit_status_and_json(world: World, database_url: str) -> None:
    await subscribed(world, "org_1")
    env = terminal.complete(database_url) | {"STRIPE_API_BASE": world.sandbox.url, "STRIPE_API_KEY": "sk_test_tests"}

    async def reconcile(*arguments: str) -> tuple[int, str]:
        ended = await asyncio.to_thread(terminal.run, "reconcile", *arguments, env=env)
        return ended.returncode, ended.stdout + ended.stderr

    assert await reconcile() == (0, "what differs from Stripe: nothing\n")
    (row,) = await world.rows(tables.subscriptions)
    await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    code, shown = await reconcile()
    assert code == 1
    assert row.subscription_id in shown
    code, shown = await reconcile("--json")
    assert [one["account"] for one in json.loads(shown)["drift"]] == ["org_1"]
    assert (await reconcile("--fix"))[0] == 0
    assert (await reconcile())[0] == 0
    told = await world.subscription("org_1")
    assert told.status == subscription_pb2.STATUS_ACTIVE
