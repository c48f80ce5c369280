"""Which version decides: the newest at once for who has no subscription, the sold one for who has."""

import asyncio
from pathlib import Path

import pytest

from billing.v1 import decision_pb2, quota_pb2, subscription_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform.database import transactions as transactions_module
from tests.acceptance import told
from tests.billing_svc import processes
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.service import CATALOGS, Billing

NYQST = (CATALOGS / "nyqst.yaml").read_text()
ALLOWED, DENIED = decision_pb2.DECISION_ALLOWED, decision_pb2.DECISION_DENIED


def changed(*changes: tuple[str, str]) -> str:
    text = NYQST
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


# What free and pro include of runs is doubled, and pro of reports is counted.
FREE_DOUBLED = ("runs: {included: 5,", "runs: {included: 10,")
PRO_DOUBLED = ("runs: {included: 200,", "runs: {included: 400,")
EXPORTS = (
    "plans:\n",
    "  exports: {unit: export, kind: consumable, operations: {dump: 4}}\n\nplans:\n",
)
PRO_EXPORTS = (
    "reports: {included: unlimited}",
    "reports: {included: unlimited}\n      exports: {included: 9, beyond: deny}",
)


async def publish(transactions: transactions_module.Transactions, billing: Billing, text: str) -> tuple[int, bool]:
    """Publish as `catalog apply` does, past the running server."""
    catalog = loading.load_text(text, "test")
    now = billing.clock.now()
    return await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))


async def check(
    billing: Billing, account_id: str, meter: str = "runs", **fields: object
) -> quota_pb2.CheckQuotaResponse:
    request = quota_pb2.CheckQuotaRequest(account_id=account_id, meter=meter, **fields)  # type: ignore[arg-type]
    return await billing.quota.CheckQuota(request)


async def subscribe(billing: Billing, account_id: str = "org_1") -> told.Told:
    now = billing.clock.now()
    subscription = told.Told("pro", since=now, account_id=account_id, subscription_id=f"sub_{account_id}")
    await subscription.apply(billing.transactions, now)
    return subscription


async def test_a_running_server_decides_by_what_another_process_published_at_once(
    billing: Billing, transactions: transactions_module.Transactions
) -> None:
    before = await check(billing, "org_1")
    assert (before.included, before.catalog_version) == (5, 1)
    assert await publish(transactions, billing, changed(FREE_DOUBLED)) == (2, True)
    after = await check(billing, "org_1")
    assert (after.included, after.catalog_version) == (10, 2)


async def test_two_server_processes_decide_by_a_new_catalog_at_once(
    billing: Billing, transactions: transactions_module.Transactions, database_url: str, tmp_path: Path
) -> None:
    request = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs")
    async with processes.servers(database_url, tmp_path, 2) as started:
        channels = [one.channel() for one in started]
        stubs = [processes.quota_stub(channel) for channel in channels]
        seen = []
        for text in (NYQST, changed(FREE_DOUBLED), NYQST):
            await publish(transactions, billing, text)
            seen.append([(await stub.CheckQuota(request, metadata=processes.METADATA)).included for stub in stubs])
        for channel in channels:
            await channel.close()
    assert seen == [[5, 5], [10, 10], [5, 5]]


async def test_plans_are_listed_by_the_newest_version_at_once(
    billing: Billing, transactions: transactions_module.Transactions
) -> None:
    """Also where no other call has made the server meet it."""
    await publish(transactions, billing, changed(("name: Pro", "name: Professional")))
    plans = (await billing.subscriptions.ListPlans(subscription_pb2.ListPlansRequest())).plans
    assert [plan.plan_name for plan in plans] == ["Free", "Professional"]


async def test_publishing_the_same_again_makes_no_version(
    billing: Billing, transactions: transactions_module.Transactions
) -> None:
    assert await publish(transactions, billing, NYQST) == (1, False)
    assert (await check(billing, "org_1")).catalog_version == 1


async def test_a_sold_subscription_keeps_its_version(
    billing: Billing, transactions: transactions_module.Transactions
) -> None:
    subscription = await subscribe(billing)
    await publish(transactions, billing, changed(FREE_DOUBLED, PRO_DOUBLED))
    sold, free = await check(billing, "org_1"), await check(billing, "org_2")
    assert (sold.plan, sold.included, sold.catalog_version) == ("pro", 200, 1)
    assert (free.plan, free.included, free.catalog_version) == ("free", 10, 2)
    await subscribe(billing, "org_3")
    new = await check(billing, "org_3")
    assert (new.plan, new.included, new.catalog_version) == ("pro", 400, 2)
    # A renewal fetched later changes no terms; checkout noted the version at Stripe.
    now = billing.clock.now()
    await subscription.but(metadata={"catalog_version": "1"}, status="past_due").apply(transactions, now)
    renewed = await check(billing, "org_1")
    assert (renewed.included, renewed.catalog_version, renewed.past_due) == (200, 1, True)


async def test_a_meter_that_the_sold_version_lacks_is_not_in_the_plan(
    billing: Billing, transactions: transactions_module.Transactions
) -> None:
    await subscribe(billing)
    await publish(transactions, billing, changed(EXPORTS, PRO_EXPORTS))
    await subscribe(billing, "org_2")
    for asked in ({"meter": "exports"}, {"meter": "", "operation": "dump"}):
        old = await check(billing, "org_1", **asked)
        assert (old.decision, old.reason) == (DENIED, decision_pb2.DECISION_REASON_NOT_IN_PLAN)
        assert (await check(billing, "org_2", **asked)).decision == ALLOWED


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        pytest.param(("beyond: charge", "beyond: chrage"), "plans.pro.limits.runs.beyond", id="a typo"),
        pytest.param(("runs: {included: 5,", "runs: {included: -5,"), "plans.free.limits.runs.included", id="negative"),
        pytest.param(("reports: {included: 2,", "raports: {included: 2,"), "plans.free.limits.raports", id="unknown"),
        pytest.param(("default_plan: free\n", ""), "default_plan", id="no default plan"),
        pytest.param(("currency: usd", "currency: usd\ncurrency: eur"), "currency", id="a key twice"),
    ],
)
async def test_a_catalog_with_a_mistake_names_the_place_and_changes_nothing(
    billing: Billing, tmp_path: Path, database_url: str, mistake: tuple[str, str], line: str
) -> None:
    """By the command that puts a catalog in force, while a server runs."""
    file = tmp_path / "wrong.yaml"
    file.write_text(changed(mistake))
    environment = terminal.complete(database_url)
    refusal = await asyncio.to_thread(terminal.refusal, "catalog", "apply", str(file), env=environment)
    assert f"{file}:" in refusal
    assert line in refusal
    after = await check(billing, "org_1")
    assert (after.included, after.catalog_version) == (5, 1)
