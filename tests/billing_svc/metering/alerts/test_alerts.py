"""Alerts by the real door: raised once, listed newest first, acknowledged once."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy as sa

from billing.v1 import admin_pb2, alert_pb2, subscription_pb2
from billing_svc.catalog import versions
from billing_svc.metering.gauges import open_periods
from billing_svc.platform.database import tables
from tests import clocks
from tests.acceptance.accounts import REJECT, START, Account
from tests.billing_svc import books
from tests.billing_svc.refusals import refused


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


async def alerts(account: Account, **fields: object) -> list[alert_pb2.Alert]:
    return list((await page(account, **fields)).alerts)


async def page(account: Account, **fields: object) -> subscription_pb2.ListAlertsResponse:
    request = subscription_pb2.ListAlertsRequest(account_id=account.account_id, **fields)  # type: ignore[arg-type]
    return await account.billing.subscriptions.ListAlerts(request)


async def acknowledge(account: Account, alert_id: str) -> alert_pb2.Alert:
    request = subscription_pb2.AcknowledgeAlertRequest(account_id=account.account_id, alert_id=alert_id)
    return (await account.billing.subscriptions.AcknowledgeAlert(request)).alert


async def audited(account: Account) -> list[tuple[str, str, dict[str, object]]]:
    log = tables.audit_log.c
    async with account.billing.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(log.actor, log.action, log.changes))]


async def test_each_threshold_is_raised_with_the_usage_that_reached_it(account: Account) -> None:
    await account.record("e1", "agent_executions", 79)
    assert await alerts(account) == []
    await account.record("e2", "agent_executions", 1)
    [warning] = await alerts(account)
    assert (warning.percent, warning.level, warning.used) == (80, alert_pb2.ALERT_LEVEL_WARNING, 80)
    assert (warning.account_id, warning.meter, warning.included) == (account.account_id, "agent_executions", 100)
    assert warning.period_start.ToDatetime(UTC) == datetime(2026, 5, 1, tzinfo=UTC)
    assert warning.period_end.ToDatetime(UTC) == datetime(2026, 6, 1, tzinfo=UTC)
    assert warning.raised_at.ToDatetime(UTC) == START
    assert not warning.HasField("acknowledged_at")
    await account.record("e3", "agent_executions", 60)
    # Of one event the highest threshold stands first.
    assert [(one.percent, one.level, one.used) for one in await alerts(account)] == [
        (120, alert_pb2.ALERT_LEVEL_EXCEEDED, 140),
        (100, alert_pb2.ALERT_LEVEL_CRITICAL, 140),
        (80, alert_pb2.ALERT_LEVEL_WARNING, 80),
    ]


async def test_neither_repeats_nor_corrections_raise_again_or_take_back(account: Account) -> None:
    await account.record("e1", "agent_executions", 100)
    before = await alerts(account)
    assert [one.percent for one in before] == [100, 80]
    await account.record("e1", "agent_executions", 100)
    await account.correct("c1", "e1", 50)
    assert await alerts(account) == before
    await account.record("e2", "agent_executions", 50)
    assert await alerts(account) == before


async def test_a_new_period_raises_anew(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("e1", "agent_executions", 80)
    service_clock.set(datetime(2026, 6, 3, tzinfo=UTC))
    await account.record("e2", "agent_executions", 80)
    assert [(one.percent, one.period_start.ToDatetime().month) for one in await alerts(account)] == [(80, 6), (80, 5)]


async def test_another_included_quantity_raises_anew(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("e1", "agent_executions", 90)
    request = admin_pb2.SetOverrideRequest(
        account_id=account.account_id, meter="agent_executions", included=110, note="a test", request_id="r1"
    )
    await account.billing.admin.SetOverride(request)
    service_clock.advance(timedelta(minutes=1))
    await account.record("e2", "agent_executions", 1)
    assert [(one.percent, one.included) for one in await alerts(account)] == [(80, 110), (80, 100)]


async def test_denied_usage_raises_none(account: Account) -> None:
    denied = await account.record("e1", "user_seats", 4, if_exceeded=REJECT)
    assert not denied.used
    assert await alerts(account) == []


async def test_concurrent_events_raise_each_threshold_once(account: Account) -> None:
    await asyncio.gather(*(account.record(f"e{n}", "agent_executions", 10) for n in range(13)))
    assert sorted(one.percent for one in await alerts(account)) == [80, 100, 120]


async def test_pages_follow_each_other_without_gap_or_overlap(
    account: Account, service_clock: clocks.StillClock
) -> None:
    for n, meter in enumerate(("llm_tokens", "agent_executions", "api_calls")):
        service_clock.advance(timedelta(minutes=n))
        await account.record(meter, meter, {"llm_tokens": 12_000, "agent_executions": 120, "api_calls": 1_200}[meter])
    whole = await alerts(account)
    assert len(whole) == 9
    assert [one.raised_at.ToDatetime() for one in whole] == sorted(
        (one.raised_at.ToDatetime() for one in whole), reverse=True
    )
    paged: list[alert_pb2.Alert] = []
    token = ""
    for size in (2, 2, 2, 2, 2):
        told = await page(account, page_size=size, page_token=token)
        paged += told.alerts
        # What is raised while somebody reads on comes before, and shifts nothing.
        service_clock.advance(timedelta(minutes=1))
        await account.record(f"more_{len(paged)}", "storage_gb", 1)
        token = told.next_page_token
    assert (paged, token) == (whole, "")
    full = await page(account, page_size=9, meter="api_calls")
    assert (len(full.alerts), full.next_page_token) == (3, "")


async def test_a_token_is_good_for_its_list_alone(account: Account) -> None:
    await account.record("e1", "agent_executions", 120)
    token = (await page(account, page_size=1)).next_page_token
    other = Account(account.billing, "org_2")
    for call in (
        page(other, page_token=token),
        page(account, page_token=token, meter="agent_executions"),
        page(account, page_token=token, include_acknowledged=True),
        page(account, page_token=token[:-4]),
        page(account, page_token="YWJj"),
        page(account, page_token="\x00"),
        page(account, page_token="x" * 513),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    refusal = await refused(page(account, page_size=501, meter="Bad"))
    assert refusal.fields == ("meter", "page_size")


async def test_first_acknowledgement_stays_and_is_audited_once(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("e1", "agent_executions", 100)
    critical, warning = await alerts(account)
    seen_at = service_clock.now() + timedelta(minutes=5)
    service_clock.set(seen_at)
    answers = await asyncio.gather(*(acknowledge(account, critical.alert_id) for _ in range(5)))
    service_clock.advance(timedelta(hours=1))
    answers.append(await acknowledge(account, critical.alert_id))
    assert {(one.acknowledged_at.ToDatetime(UTC), one.acknowledged_by) for one in answers} == {(seen_at, "test")}
    assert [entry for entry in await audited(account) if entry[1] == "acknowledge_alert"] == [
        (
            "caller:test",
            "acknowledge_alert",
            {"alert": critical.alert_id, "meter": "agent_executions", "percent": 100},
        )
    ]
    assert await alerts(account) == [warning]
    assert [one.alert_id for one in await alerts(account, include_acknowledged=True)] == [
        critical.alert_id,
        warning.alert_id,
    ]


async def test_alert_of_another_account_is_none(account: Account) -> None:
    await account.record("e1", "agent_executions", 80)
    [alert] = await alerts(account)
    assert 1 <= len(alert.alert_id) <= 64
    before = await books.contents(account.billing.engine)
    for call in (acknowledge(Account(account.billing, "org_2"), alert.alert_id), acknowledge(account, "nothing")):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "ALERT_NOT_FOUND")
        assert set(refusal.metadata) == {"alert_id"}
    assert (await refused(acknowledge(account, "x" * 65))).fields == ("alert_id",)
    assert await books.contents(account.billing.engine) == before


class TestGaugesWithoutEvents:
    """The worker raises the alerts of a level that nobody records."""

    @staticmethod
    async def open_due(account: Account) -> list[tuple[int, int, int]]:
        """Do a round of the worker's loop; returns month, threshold and included quantity of all alerts, sorted."""
        catalogs, now = versions.CatalogCache(), account.now
        await account.billing.transactions.run(lambda conn: open_periods.open_due(conn, catalogs, now))
        found = await alerts(account)
        return sorted((one.period_start.ToDatetime().month, one.percent, one.included) for one in found)

    @staticmethod
    async def override(account: Account, request_id: str, included: int, **fields: object) -> None:
        request = admin_pb2.SetOverrideRequest(
            account_id=account.account_id,
            meter="user_seats",
            included=included,
            note="test",
            request_id=request_id,
            **fields,  # type: ignore[arg-type]
        )
        await account.billing.admin.SetOverride(request)

    async def test_a_new_period_raises_what_the_level_has_reached(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("seats", "user_seats", level=3)
        before = [(5, 80, 3), (5, 100, 3)]
        assert await self.open_due(account) == before
        service_clock.set(datetime(2026, 6, 3, tzinfo=UTC))
        assert await self.open_due(account) == [*before, (6, 80, 3), (6, 100, 3)]
        assert await self.open_due(account) == [*before, (6, 80, 3), (6, 100, 3)]

    async def test_an_override_that_is_lowered_removed_or_over_raises_what_the_level_has_reached(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await self.override(account, "r1", 100)
        await account.record("seats", "user_seats", level=10)
        assert await self.open_due(account) == []
        await self.override(account, "r2", 10)
        lowered = [(5, 80, 10), (5, 100, 10)]
        assert await self.open_due(account) == lowered
        await self.override(account, "r3", 100, expires_at=START + timedelta(hours=1))
        assert await self.open_due(account) == lowered
        service_clock.advance(timedelta(hours=1))
        over = [(5, 80, 3), (5, 80, 10), (5, 100, 3), (5, 100, 10), (5, 120, 3)]
        assert await self.open_due(account) == over
        await self.override(account, "r4", 12)
        with_twelve = sorted([*over, (5, 80, 12)])
        assert await self.open_due(account) == with_twelve
        remove = admin_pb2.RemoveOverrideRequest(account_id=account.account_id, meter="user_seats", request_id="r5")
        await account.billing.admin.RemoveOverride(remove)
        assert await self.open_due(account) == with_twelve
