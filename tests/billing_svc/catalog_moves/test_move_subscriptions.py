"""Moving sold subscriptions to the newest version: what the preview tells, what is refused, and what a move does."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from billing.v1 import quota_pb2, usage_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.subscriptions.catalog_moves import move_subscriptions
from tests.acceptance import told
from tests.billing_svc import books
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.service import CATALOGS, Billing

ORIGIN = audit_store.Origin("operator:ops")


async def publish(billing: Billing, name: str, *changes: tuple[str, str]) -> None:
    text = (CATALOGS / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    catalog = loading.load_text(text, "test")
    now = billing.clock.now()
    await billing.transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))


async def subscribe(billing: Billing, account_id: str, plan: str = "pro", **fields: object) -> told.Told:
    now = billing.clock.now()
    subscription = told.Told(plan, since=now, account_id=account_id, subscription_id=f"sub_{account_id}").but(**fields)
    await subscription.apply(billing.transactions, now)
    return subscription


async def record(billing: Billing, account_id: str, meter: str, quantity: int) -> None:
    request = usage_pb2.RecordUsageRequest(account_id=account_id, event_id="e", meter=meter, quantity=quantity)
    await billing.usage.RecordUsage(request)


async def check(billing: Billing, account_id: str, meter: str) -> quota_pb2.CheckQuotaResponse:
    return await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id=account_id, meter=meter))


async def preview(billing: Billing, account_id: str | None = None) -> list[move_subscriptions.Move]:
    return [move async for move in move_subscriptions.preview(billing.transactions, billing.clock.now(), account_id)]


async def apply(billing: Billing, move: move_subscriptions.Move) -> move_subscriptions.Move | None:
    return await move_subscriptions.apply(billing.transactions, move, ORIGIN, billing.clock.now())


# The new version halves what pro includes of runs, and counts its reports.
HALVED = (("runs: {included: 200,", "runs: {included: 100,"), ("{included: unlimited}", "{included: 10, beyond: deny}"))


async def test_the_preview_tells_who_would_be_over_and_changes_nothing(billing: Billing) -> None:
    for account_id in ("org_1", "org_2"):
        await subscribe(billing, account_id)
    await record(billing, "org_1", "runs", 150)
    await record(billing, "org_2", "runs", 100)
    held = quota_pb2.CheckQuotaRequest(account_id="org_2", meter="runs", quantity=7, reserve=True, request_id="job")
    await billing.quota.CheckQuota(held)
    await publish(billing, "nyqst", *HALVED)
    before = await books.contents(billing.engine)
    over, within = await preview(billing)
    assert (over.account_id, over.plan, over.from_version, over.to_version, over.refusal) == ("org_1", "pro", 1, 2, "")
    assert over.over == (
        move_subscriptions.Over("runs", 150, included_before=200, included_after=100, beyond="charge"),
    )
    assert (within.account_id, within.over, within.refusal) == ("org_2", (), "")
    assert (over.holds, within.holds) == ((), (move_subscriptions.OpenHolds("runs", 7),))
    assert [move.account_id for move in await preview(billing, "org_2")] == ["org_2"]
    assert await books.contents(billing.engine) == before


async def test_a_move_counts_from_the_next_call_on_and_is_audited(billing: Billing) -> None:
    await subscribe(billing, "org_1")
    await record(billing, "org_1", "runs", 60)
    await publish(billing, "nyqst", *HALVED)
    (move,) = await preview(billing)
    assert (await check(billing, "org_1", "runs")).included == 200
    assert await apply(billing, move) == move
    after = await check(billing, "org_1", "runs")
    assert (after.included, after.catalog_version, after.used, after.remaining) == (100, 2, 60, 40)
    assert await preview(billing) == []
    # Again does nothing, and leaves no second entry.
    assert await apply(billing, move) is None
    query = sa.select(tables.audit_log).where(tables.audit_log.c.action == "subscription.moved")
    async with billing.engine.connect() as connection:
        (entry,) = (await connection.execute(query)).all()
    assert (entry.account_id, entry.actor) == ("org_1", "operator:ops")
    assert entry.changes == {"subscription": "sub_org_1", "plan": "pro", "from_version": 1, "to_version": 2}
    await books.assert_balanced(billing.engine)


async def test_what_stripe_tells_later_does_not_move_a_subscription_back(billing: Billing) -> None:
    subscription = await subscribe(billing, "org_1", metadata={"catalog_version": "1"})
    await publish(billing, "nyqst", *HALVED)
    (move,) = await preview(billing)
    await apply(billing, move)
    await subscription.but(status="past_due").apply(billing.transactions, billing.clock.now())
    assert (await check(billing, "org_1", "runs")).catalog_version == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(("  pro:\n", "  plus:\n"), "plan pro is gone", id="plan"),
        pytest.param(("      monthly:", "      every_month:"), "price monthly is gone", id="price"),
        pytest.param(('"20.00"', '"25.00"'), "price monthly differs: 20 a month as sold, 25 a month now", id="amount"),
        pytest.param(
            ('"0.50"', '"0.40"'), "the charge for a unit of runs differs: 0.5 as sold, 0.4 now", id="unit price"
        ),
        pytest.param(
            ('beyond: charge, unit_price: "0.50"', "beyond: deny"),
            "the charge for a unit of runs differs: 0.5 as sold, nothing now",
            id="charged no more",
        ),
        pytest.param(
            ("{included: unlimited}", '{included: 10, beyond: charge, unit_price: "2"}'),
            "the charge for a unit of reports differs: nothing as sold, 2 now",
            id="newly charged",
        ),
    ],
)
async def test_a_subscription_whose_prices_are_not_what_stripe_holds_is_not_moved(
    billing: Billing, change: tuple[str, str], reason: str
) -> None:
    await subscribe(billing, "org_1")
    await publish(billing, "nyqst", change)
    (move,) = await preview(billing)
    assert move.refusal.removesuffix("; ChangePlan with newest_catalog moves it, with the new prices") == reason
    refused = await apply(billing, move)
    assert refused is not None
    assert refused.refusal == move.refusal
    assert (await check(billing, "org_1", "runs")).catalog_version == 1


async def test_the_same_price_in_another_notation_is_the_same(billing: Billing) -> None:
    await subscribe(billing, "org_1")
    await publish(billing, "nyqst", ('unit_price: "0.50"', 'unit_price: "50", per: 100'), HALVED[0])
    (move,) = await preview(billing)
    assert move.refusal == ""


@pytest.mark.parametrize("catalog_name", ["automation"])
async def test_a_move_to_another_kind_of_month_is_refused(billing: Billing) -> None:
    await subscribe(billing, "org_1", "basic")
    await publish(billing, "automation", ("quota_period: calendar_month", "quota_period: billing"))
    (move,) = await preview(billing)
    assert move.refusal.startswith("the quota period differs: calendar_month as sold, billing now; ChangePlan")


async def test_subscriptions_that_are_over_stay_where_they_are(billing: Billing) -> None:
    ended = await subscribe(billing, "org_1")
    await ended.but(status="canceled", ended_at=billing.clock.now()).apply(billing.transactions, billing.clock.now())
    unpaid = await subscribe(billing, "org_2")
    await unpaid.but(status="unpaid").apply(billing.transactions, billing.clock.now())
    await publish(billing, "nyqst", *HALVED)
    assert [move.account_id for move in await preview(billing)] == ["org_2"]


@pytest.mark.parametrize("catalog_name", ["orgs"])
async def test_seats_and_overrides_are_in_the_preview(billing: Billing) -> None:
    for account_id in ("org_1", "org_2"):
        await subscribe(billing, account_id, "team", quantity=3)
        await record(billing, account_id, "exports", 500)
    override = {"meter": "exports", "included": 550, "note": "", "set_by": "t", "set_at": billing.clock.now()}
    async with billing.engine.begin() as connection:
        await connection.execute(sa.insert(tables.account_overrides).values(account_id="org_2", **override))
    await publish(billing, "orgs", ("exports: {included: 200,", "exports: {included: 150,"))
    over, within = await preview(billing)
    assert over.over == (
        move_subscriptions.Over("exports", 500, included_before=600, included_after=450, beyond="grace"),
    )
    assert within.over == ()


async def test_more_than_a_page_is_moved(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_subscriptions, "PAGE_SIZE", 2)
    for n in range(5):
        await subscribe(billing, f"org_{n}")
    await publish(billing, "nyqst", *HALVED)
    moves = await preview(billing)
    assert [move.account_id for move in moves] == [f"org_{n}" for n in range(5)]


async def test_the_command_shows_first_and_moves_with_apply(billing: Billing, database_url: str) -> None:
    await subscribe(billing, "org_1")
    await record(billing, "org_1", "runs", 150)
    await publish(billing, "nyqst", *HALVED)
    environment = terminal.environment(DATABASE_URL=database_url)

    async def run(*arguments: str) -> str:
        ended = await asyncio.to_thread(terminal.run, "catalog", "move", *arguments, env=environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    shown = await run()
    for part in ("org_1", "sub_org_1", "pro", "1 to 2", "runs: 150 used, 200 included now, 100 then, beyond: charge"):
        assert part in shown
    assert (await check(billing, "org_1", "runs")).catalog_version == 1
    assert "every subscription is on the newest" in await run("--account", "org_2")
    assert "1 of 1 subscriptions moved" in await run("--apply")
    assert (await check(billing, "org_1", "runs")).catalog_version == 2
    assert "every subscription is on the newest" in await run()


async def test_a_move_keeps_the_period(billing: Billing) -> None:
    await subscribe(billing, "org_1")
    before = await check(billing, "org_1", "runs")
    billing.clock.advance(timedelta(days=3))
    await publish(billing, "nyqst", *HALVED)
    (move,) = await preview(billing)
    await apply(billing, move)
    after = await check(billing, "org_1", "runs")
    assert (after.period_start, after.period_end) == (before.period_start, before.period_end)
