"""Market data by credits: 1,000 a month free; $0.008 for each more with pay-as-you-go; 4,000 for $30."""

import asyncio
import itertools
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing.v1 import admin_pb2, quota_pb2, usage_pb2
from tests import clocks
from tests.acceptance.accounts import (
    ALLOWED,
    DENIED,
    EXHAUSTED,
    OVERAGE,
    PLAIN,
    RATE_LIMITED,
    REJECT,
    Account,
    publish,
)
from tests.billing_svc import books, processes
from tests.billing_svc.service import CATALOGS, Billing


@pytest.mark.parametrize(("operation", "cost"), [("markets", 1), ("deltas", 2), ("orderbook", 5)])
async def test_an_operation_takes_its_credits(account: Account, operation: str, cost: int) -> None:
    assert (await account.check(operation=operation)).cost == cost
    answer = await account.record("call", operation=operation, quantity=3)
    assert (answer.meter, answer.cost, answer.used) == ("credits", 3 * cost, 3 * cost)


async def test_at_996_of_1000_an_orderbook_is_denied_and_deltas_are_allowed(account: Account) -> None:
    await account.record("before", "credits", 996)
    denied = await account.check(operation="orderbook")
    assert (denied.decision, denied.reason, denied.cost, denied.remaining) == (DENIED, EXHAUSTED, 5, 4)
    assert denied.resets_at.ToDatetime(tzinfo=UTC) == datetime(2026, 6, 1, tzinfo=UTC)
    assert list(denied.upgrade_plans) == ["project"]
    allowed = await account.check(operation="deltas")
    assert (allowed.decision, allowed.reason, allowed.cost) == (ALLOWED, PLAIN, 2)
    # The same for records; the denied record took no credits.
    assert (await account.record("o", operation="orderbook", if_exceeded=REJECT)).decision == DENIED
    assert (await account.record("d", operation="deltas", quantity=2, if_exceeded=REJECT)).used == 1000


async def test_with_pay_as_you_go_the_1001st_credit_is_allowed_and_costs_0_008(account: Account) -> None:
    await account.record("before", "credits", 1000)
    assert (await account.check("credits")).decision == DENIED
    await account.switch_pay_as_you_go(on=True)
    check = await account.check("credits")
    assert (check.decision, check.reason, check.pay_as_you_go) == (ALLOWED, OVERAGE, True)
    assert (check.projected_overage_cost.amount, check.projected_overage_cost.currency) == ("0.008", "usd")
    answer = await account.record("1001st", "credits", if_exceeded=REJECT)
    assert (answer.decision, answer.used, answer.billable) == (ALLOWED, 1001, 1)
    usage = (await account.usage("credits"))["credits"]
    assert (usage.billable, usage.projected_overage_cost.amount) == (1, "0.008")


async def test_a_cap_on_the_overage_denies_what_would_pass_it_and_says_on_which_terms(
    billing: Billing, account: Account
) -> None:
    text = (CATALOGS / "kalshibook.yaml").read_text()
    overlay = "    pay_as_you_go:\n      name: Pay as you go\n"
    assert overlay in text
    await publish(billing, text.replace(overlay, overlay + '      overage_cap: "0.02"\n', 1))
    await account.switch_pay_as_you_go(on=True)
    await account.record("before", "credits", 1001)
    assert (await account.check("credits")).decision == ALLOWED
    assert (await account.record("1002nd", "credits", if_exceeded=REJECT)).billable == 1
    denied = await account.record("1003rd", "credits", if_exceeded=REJECT)
    assert (denied.decision, denied.reason, denied.used) == (DENIED, EXHAUSTED, 1002)
    assert (denied.pay_as_you_go, denied.plan, denied.catalog_version) == (True, "free", 2)
    assert (await account.check("credits")).reason == EXHAUSTED


async def test_switching_pay_as_you_go_gives_no_fresh_allowance(account: Account) -> None:
    await account.record("before", "credits", 1000)
    for n in range(3):
        await account.switch_pay_as_you_go(on=True)
        assert (await account.record(f"more_{n}", "credits", 10, if_exceeded=REJECT)).billable == 10
        await account.switch_pay_as_you_go(on=False)
        assert (await account.check("credits")).decision == DENIED
    usage = (await account.usage("credits"))["credits"]
    assert (usage.used, usage.billable, usage.remaining) == (1030, 30, 0)


async def test_project_has_four_thousand_and_pay_as_you_go_too(account: Account) -> None:
    await account.subscribe("project")
    await account.record("before", "credits", 3999)
    assert (await account.check("credits", 1)).decision == ALLOWED
    assert (await account.check("credits", 2)).decision == DENIED
    await account.switch_pay_as_you_go(on=True)
    check = await account.check("credits", 126)
    assert (check.decision, check.reason, check.projected_overage_cost.amount) == (ALLOWED, OVERAGE, "1.00")


async def test_credits_do_not_roll_over(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("may", "credits", 10)
    service_clock.set(datetime(2026, 5, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    assert (await account.check("credits")).remaining == 990
    service_clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    check = await account.check("credits", 1000)
    assert (check.decision, check.used, check.remaining) == (ALLOWED, 0, 1000)
    assert (await account.check("credits", 1001)).decision == DENIED


async def test_pay_as_you_go_of_june_does_not_charge_late_credits_of_may(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("may", "credits", 1000)
    service_clock.set(datetime(2026, 6, 1, 0, 10, tzinfo=UTC))
    await account.switch_pay_as_you_go(on=True)
    happened = datetime(2026, 5, 31, 23, 59, tzinfo=UTC)
    late = await account.record("late", "credits", 7, occurred_at=happened)
    assert (late.used, late.billable, late.over_limit) == (1007, 0, True)
    assert (await account.record("refused", "credits", occurred_at=happened, if_exceeded=REJECT)).decision == DENIED


async def test_who_cancels_is_back_on_free(account: Account, service_clock: clocks.StillClock) -> None:
    """Cancelling also ends pay-as-you-go, which the application of the subscription switches off."""
    subscription = await account.subscribe("project")
    await account.record("paid", "credits", 3000)
    service_clock.advance(timedelta(days=5))
    await account.tell(subscription.but(status="canceled", ended_at=service_clock.now()))
    check = await account.check("credits", 1000)
    assert (check.plan, check.decision, check.included, check.used) == ("free", ALLOWED, 1000, 0)
    assert (await account.check("credits", 1001)).decision == DENIED


@pytest.mark.parametrize(("plan", "pay_as_you_go", "requests"), [("free", False, 30), ("free", True, 60)])
async def test_the_rate_limit_admits_n_in_a_minute_that_begins_with_the_first(
    account: Account,
    service_clock: clocks.StillClock,
    *,
    plan: str,
    pay_as_you_go: bool,
    requests: int,
) -> None:
    await account.switch_pay_as_you_go(on=pay_as_you_go)
    first = service_clock.now()
    for n in range(requests):
        check = await account.check("credits")
        assert (check.decision, check.plan) == (ALLOWED, plan), n
        service_clock.advance(timedelta(milliseconds=500))
    service_clock.set(first + timedelta(minutes=1) - timedelta(microseconds=1))
    denied = await account.check("credits")
    assert (denied.decision, denied.reason, denied.retry_after.ToMicroseconds()) == (DENIED, RATE_LIMITED, 1)
    service_clock.set(first + timedelta(minutes=1))
    for _ in range(requests):
        assert (await account.check("credits")).decision == ALLOWED
    assert (await account.check("credits")).reason == RATE_LIMITED


async def test_an_event_with_reject_takes_a_place_in_the_rate_window_as_a_check_does(
    account: Account, service_clock: clocks.StillClock
) -> None:
    held = await account.check("credits", 2, reserve=True, request_id="job")
    for _ in range(28):
        await account.check("credits")
    assert (await account.record("last", "credits", if_exceeded=REJECT)).decision == ALLOWED
    service_clock.advance(timedelta(seconds=59))
    denied = await account.record("over", "credits", if_exceeded=REJECT)
    assert (denied.decision, denied.reason, denied.used, denied.over_limit) == (DENIED, RATE_LIMITED, 1, False)
    assert denied.retry_after.ToSeconds() == 1
    assert not denied.upgrade_plans
    # What is a fact, a retry, and the end of a hold, whose check has its place already, take none.
    assert (await account.record("fact", "credits")).decision == ALLOWED
    assert (await account.record("retry", "credits", retry_attempt=1, if_exceeded=REJECT)).decision == ALLOWED
    settled = await account.record("job", "credits", reservation_id=held.reservation_id, if_exceeded=REJECT)
    assert (settled.decision, settled.used) == (ALLOWED, 3)
    # The denied one was not remembered; the next window admits it, and counts it.
    service_clock.advance(timedelta(seconds=1))
    assert (await account.record("over", "credits", if_exceeded=REJECT)).decision == ALLOWED
    assert (await account.check("credits", explain=True)).explanation.rate_limit_used == 2


async def test_a_batch_of_events_with_reject_fills_the_rate_window_and_no_more(account: Account) -> None:
    events = [
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"e{n}", meter="credits", if_exceeded=REJECT)
        for n in range(35)
    ]
    batch = await account.billing.usage.BatchRecordUsage(usage_pb2.BatchRecordUsageRequest(events=events))
    assert (batch.recorded, batch.denied) == (30, 5)
    assert {result.answer.reason for result in batch.results[30:]} == {RATE_LIMITED}
    assert (await account.check("credits")).reason == RATE_LIMITED


async def test_a_rate_limit_holds_for_who_bought_it_though_no_plan_has_one_any_more(
    billing: Billing, account: Account, database_url: str, tmp_path: Path
) -> None:
    """Also at a newly started server whose newest catalog has no rate limit."""
    await account.subscribe("project")
    text = (CATALOGS / "kalshibook.yaml").read_text()
    used = []
    for asked in (5, 3):
        async with processes.servers(database_url, tmp_path, 1) as (started,):
            channel = started.channel()
            stub = processes.quota_stub(channel)
            stranger = quota_pb2.CheckQuotaRequest(account_id="org_2", meter="credits")
            assert (await stub.CheckQuota(stranger, metadata=processes.METADATA)).plan == "free"
            request = quota_pb2.CheckQuotaRequest(account_id=account.account_id, meter="credits", explain=True)
            answers = [await stub.CheckQuota(request, metadata=processes.METADATA) for _ in range(asked)]
            used += [answer.explanation.rate_limit_used for answer in answers]
            await channel.close()
        await publish(billing, re.sub(r"\n +rate_limit: .*", "", text))
    assert used == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_check_that_the_quota_denies_does_not_count_for_the_rate(account: Account) -> None:
    await account.record("before", "credits", 1000)
    for _ in range(31):
        assert (await account.check("credits")).reason == EXHAUSTED
    await account.correct("fix", "before", 100)
    for _ in range(30):
        assert (await account.check("credits")).decision == ALLOWED
    assert (await account.check("credits")).reason == RATE_LIMITED


@pytest.mark.parametrize(
    ("plan", "pay_as_you_go", "requests"), [("free", False, 30), ("free", True, 60), ("project", False, 120)]
)
async def test_the_rate_limit_holds_with_two_server_processes(
    account: Account,
    database_url: str,
    tmp_path: Path,
    service_clock: clocks.StillClock,
    *,
    plan: str,
    pay_as_you_go: bool,
    requests: int,
) -> None:
    """Sends twice as many checks as are admitted, concurrently, to both processes."""
    service_clock.set(datetime.now(UTC))
    if plan != "free":
        await account.subscribe(plan)
    await account.switch_pay_as_you_go(on=pay_as_you_go)
    async with processes.servers(database_url, tmp_path, 2) as started:
        channels = [one.channel() for one in started]
        stubs = itertools.cycle([processes.quota_stub(channel) for channel in channels])
        request = quota_pb2.CheckQuotaRequest(account_id=account.account_id, operation="markets")
        answers = await asyncio.gather(
            *(next(stubs).CheckQuota(request, metadata=processes.METADATA) for _ in range(2 * requests))
        )
        for channel in channels:
            await channel.close()
    assert {answer.plan for answer in answers} == {plan}
    assert Counter((answer.decision, answer.reason) for answer in answers) == {
        (ALLOWED, PLAIN): requests,
        (DENIED, RATE_LIMITED): requests,
    }


async def test_two_processes_never_admit_past_the_credits(
    billing: Billing, account: Account, database_url: str, tmp_path: Path
) -> None:
    """Records with REJECT to both processes concurrently: exactly the 20 order books that 100 credits buy."""
    hundred = admin_pb2.SetOverrideRequest(
        account_id=account.account_id, meter="credits", included=100, note="a test", request_id="r1"
    )
    await billing.admin.SetOverride(hundred)
    async with processes.servers(database_url, tmp_path, 2) as started:
        channels = [one.channel() for one in started]
        stubs = itertools.cycle([processes.usage_stub(channel) for channel in channels])
        answers = await asyncio.gather(
            *(
                next(stubs).RecordUsage(
                    usage_pb2.RecordUsageRequest(
                        account_id=account.account_id, event_id=f"call_{n}", operation="orderbook", if_exceeded=REJECT
                    ),
                    metadata=processes.METADATA,
                )
                for n in range(60)
            )
        )
        for channel in channels:
            await channel.close()
    assert Counter(answer.decision for answer in answers) == {ALLOWED: 20, DENIED: 40}
    assert await books.used(billing.engine, account.account_id) == 100
    await books.assert_balanced(billing.engine)
