"""SetOverride and RemoveOverride by the real door, and the decisions that they change."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy as sa

from billing.v1 import admin_pb2, quota_pb2
from billing_svc.platform.database import tables
from tests import clocks
from tests.acceptance.accounts import ALLOWED, DENIED, NOT_IN_PLAN, REJECT, START, Account
from tests.billing_svc import books
from tests.billing_svc.refusals import Refusal, refused


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


def setting(account: Account, **fields: object) -> admin_pb2.SetOverrideRequest:
    values = {"meter": "runs", "included": 8, "note": "a test", "request_id": "r1", **fields}
    return admin_pb2.SetOverrideRequest(account_id=account.account_id, **values)  # type: ignore[arg-type]


async def override(account: Account, **fields: object) -> quota_pb2.Override:
    return (await account.billing.admin.SetOverride(setting(account, **fields))).override


async def remove(account: Account, meter: str = "runs", request_id: str = "r2") -> quota_pb2.Override:
    request = admin_pb2.RemoveOverrideRequest(account_id=account.account_id, meter=meter, request_id=request_id)
    return (await account.billing.admin.RemoveOverride(request)).removed


async def refusal_of(account: Account, **fields: object) -> Refusal:
    return await refused(account.billing.admin.SetOverride(setting(account, **fields)))


async def audited(account: Account) -> list[tuple[str, str, str, dict[str, object]]]:
    log = tables.audit_log.c
    query = sa.select(log.actor, log.action, log.request_id, log.changes).order_by(log.at)
    async with account.billing.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_override_decides_from_the_next_call_on_until_it_is_removed(account: Account) -> None:
    await account.record("e1", "runs", 5)
    assert (await account.check("runs")).decision == DENIED
    told = await override(account)
    assert (told.meter, told.included, told.unlimited, told.note, told.set_by) == ("runs", 8, False, "a test", "test")
    assert told.set_at.ToDatetime(UTC) == START
    check = await account.check("runs", 3)
    assert (check.decision, check.included, check.remaining, check.overridden) == (ALLOWED, 8, 3, True)
    assert (await account.check("runs", 4)).decision == DENIED
    recorded = await account.record("e2", "runs", 1)
    assert (recorded.included, recorded.overridden, recorded.remaining) == (8, True, 2)
    line = (await account.usage("runs"))["runs"]
    assert (line.included, line.overridden, line.percent) == (8, True, 75)
    assert await remove(account) == told
    check = await account.check("runs")
    assert (check.decision, check.included, check.overridden) == (DENIED, 5, False)


async def test_an_override_may_be_unlimited_or_nothing_at_all(account: Account) -> None:
    told = await override(account, included=None, unlimited=True)
    assert (told.unlimited, told.included) == (True, 0)
    check = await account.check("runs", 10**9)
    assert (check.decision, check.unlimited, check.overridden) == (ALLOWED, True, True)
    await override(account, included=0, request_id="r2")
    check = await account.check("runs")
    assert (check.decision, check.unlimited, check.included, check.overridden) == (DENIED, False, 0, True)


async def test_override_ends_with_its_expiry_to_the_microsecond(
    account: Account, service_clock: clocks.StillClock
) -> None:
    expires_at = START + timedelta(hours=1)
    told = await override(account, expires_at=expires_at)
    assert told.expires_at.ToDatetime(UTC) == expires_at
    service_clock.set(expires_at - timedelta(microseconds=1))
    assert (await account.check("runs")).included == 8
    service_clock.set(expires_at)
    check = await account.check("runs")
    assert (check.included, check.overridden) == (5, False)
    # It is no longer in force, so there is none to remove.
    assert (await refused(remove(account))).reason == "OVERRIDE_NOT_FOUND"
    assert (await refusal_of(account, expires_at=expires_at, request_id="r3")).fields == ("expires_at",)


async def test_override_is_for_the_account_and_not_for_each_seat_or_plan(account: Account) -> None:
    await override(account, included=300)
    await account.subscribe("pro")
    recorded = await account.record("e1", "runs", 310)
    # The plan's price stays.
    assert (recorded.billable, recorded.included) == (10, 300)
    assert (await account.check("runs")).projected_overage_cost.amount == "0.50"


async def test_repeat_gives_the_first_answer_and_changes_nothing(
    account: Account, service_clock: clocks.StillClock
) -> None:
    expires_at = START + timedelta(hours=1)
    first = await override(account, expires_at=expires_at)
    await override(account, included=9, request_id="r2")
    before = await books.contents(account.billing.engine)
    # Also when the first one would be refused by now.
    service_clock.set(expires_at + timedelta(days=1))
    assert await override(account, expires_at=expires_at) == first
    assert await books.contents(account.billing.engine) == before
    assert (await account.check("runs")).included == 9


@pytest.mark.parametrize(
    "other",
    [
        {"included": 9},
        {"included": None, "unlimited": True},
        {"note": "another"},
        {"meter": "reports"},
        {"expires_at": START + timedelta(hours=1)},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_request_id_with_other_content_is_refused(account: Account, other: dict[str, object]) -> None:
    await override(account)
    before = await books.contents(account.billing.engine)
    refusal = await refusal_of(account, **other)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refusal.metadata == {"request_id": "r1"}
    assert await books.contents(account.billing.engine) == before


async def test_request_id_is_one_for_setting_and_removing(account: Account) -> None:
    told = await override(account)
    assert (await refused(remove(account, request_id="r1"))).reason == "REQUEST_ID_REUSED"
    assert await remove(account) == told
    # The same removal again, after another override was set.
    await override(account, included=9, request_id="r3")
    assert await remove(account) == told
    assert (await account.check("runs")).included == 9
    assert (await refusal_of(account, request_id="r2")).reason == "REQUEST_ID_REUSED"
    # Another account has ids of its own.
    await override(Account(account.billing, "org_2"), request_id="r2")


async def test_equal_calls_at_once_set_and_remove_once(account: Account) -> None:
    told = await asyncio.gather(*(override(account) for _ in range(8)))
    assert all(one == told[0] for one in told)
    removed = await asyncio.gather(*(remove(account) for _ in range(8)))
    assert all(one == told[0] for one in removed)
    assert [(action, request_id) for _, action, request_id, _ in await audited(account)] == [
        ("set_override", "r1"),
        ("remove_override", "r2"),
    ]


async def test_audit_tells_what_was_and_what_is(account: Account, service_clock: clocks.StillClock) -> None:
    await override(account)
    service_clock.advance(timedelta(minutes=1))
    await override(account, included=None, unlimited=True, note="more", request_id="r2")
    service_clock.advance(timedelta(minutes=1))
    await remove(account, request_id="r3")
    entries = await audited(account)
    assert [entry[:3] for entry in entries] == [
        ("caller:test", "set_override", "r1"),
        ("caller:test", "set_override", "r2"),
        ("caller:test", "remove_override", "r3"),
    ]
    first = {"included": 8, "expires_at": None, "note": "a test", "set_by": "test", "set_at": START.isoformat()}
    second_at = (START + timedelta(minutes=1)).isoformat()
    second = {"included": None, "expires_at": None, "note": "more", "set_by": "test", "set_at": second_at}
    assert [entry[3] for entry in entries] == [
        {"meter": "runs", "before": None, "after": first},
        {"meter": "runs", "before": first, "after": second},
        {"meter": "runs", "before": second, "after": None},
    ]


async def test_misuse_is_refused_and_changes_nothing(account: Account) -> None:
    before = await books.contents(account.billing.engine)
    assert (await refusal_of(account, included=None)).fields == ("included",)
    assert (await refusal_of(account, unlimited=True)).fields == ("included",)
    assert (await refusal_of(account, included=-1)).fields == ("included",)
    assert (await refusal_of(account, included=10**12 + 1)).fields == ("included",)
    assert (await refusal_of(account, note=" ")).fields == ("note",)
    assert (await refusal_of(account, note="x" * 501)).fields == ("note",)
    assert (await refusal_of(account, request_id="")).fields == ("request_id",)
    assert (await refusal_of(account, expires_at=START)).fields == ("expires_at",)
    unknown = await refusal_of(account, meter="nothing")
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "METER_NOT_FOUND")
    missing = await refused(remove(account))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "OVERRIDE_NOT_FOUND")
    assert missing.metadata == {"account_id": account.account_id, "meter": "runs"}
    assert await books.contents(account.billing.engine) == before


async def test_override_makes_the_account(account: Account) -> None:
    assert (await books.row_counts(account.billing.engine))["accounts"] == 0
    await override(account)
    assert (await books.row_counts(account.billing.engine))["accounts"] == 1


class TestOutsideThePlan:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "automation"

    async def test_override_gives_just_its_quantity(self, account: Account) -> None:
        assert (await account.check("tokens")).reason == NOT_IN_PLAN
        await override(account, meter="tokens", included=10)
        check = await account.check("tokens", 10, explain=True)
        assert (check.decision, check.overridden) == (ALLOWED, True)
        assert check.explanation.override.included == 10
        # The plan itself has no limit for it.
        assert not check.explanation.HasField("limit")
        denied = await account.record("e1", "tokens", 11, if_exceeded=REJECT)
        assert denied.decision == DENIED
        [line] = (await account.usage()).values()
        assert (line.meter, line.included, line.in_plan) == ("tokens", 10, True)


async def test_override_of_a_past_period_stays_with_its_counter(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await override(account)
    await account.record("e1", "runs", 6)
    await remove(account)
    service_clock.set(datetime(2026, 6, 1, 0, 10, tzinfo=UTC))
    late = await account.record("e2", "runs", 1, occurred_at=START)
    # Under the last terms that were kept on that period's counter.
    assert (late.used, late.included, late.overridden) == (7, 8, True)
