"""CorrectUsage by the real door."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from billing.v1 import admin_pb2, usage_pb2, usage_pb2_grpc
from billing_svc.platform import clock
from tests import clocks
from tests.acceptance.accounts import ALLOWED, DENIED, GRACE, GRACE_EXPIRED, START, Account
from tests.billing_svc import books
from tests.billing_svc.refusals import Refusal, refused
from tests.billing_svc.service import Billing


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


async def refusal_of(account: Account, correction_id: str, event_id: str, quantity: int | None = None) -> Refusal:
    return await refused(account.correct(correction_id, event_id, quantity))


async def test_part_of_an_event_is_taken_back_and_then_the_rest(account: Account) -> None:
    await account.record("e1", "runs", 4)
    told = await account.correct("c1", "e1", 1)
    assert (told.meter, told.quantity, told.billable_quantity, told.left) == ("runs", 1, 0, 3)
    assert (told.used, told.billable, told.duplicate) == (3, 0, False)
    assert told.period_start.ToDatetime(UTC) == datetime(2026, 5, 1, tzinfo=UTC)
    assert told.period_end.ToDatetime(UTC) == datetime(2026, 6, 1, tzinfo=UTC)
    told = await account.correct("c2", "e1")
    assert (told.quantity, told.left, told.used) == (3, 0, 0)
    assert (await account.check("runs")).remaining == 5
    await books.assert_balanced(account.billing.engine)


async def test_never_more_than_is_left_is_taken_back(account: Account) -> None:
    await account.record("e1", "runs", 3)
    await account.record("e2", "runs", 10)
    await account.correct("c1", "e1", 2)
    before = await books.contents(account.billing.engine)
    refusal = await refusal_of(account, "c2", "e1", 2)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CORRECTION_TOO_LARGE")
    assert refusal.metadata == {"event_id": "e1", "left": "1"}
    await account.correct("c3", "e1")
    assert (await refusal_of(account, "c4", "e1")).metadata == {"event_id": "e1", "left": "0"}
    assert (await refusal_of(account, "c4", "e1", 1)).reason == "CORRECTION_TOO_LARGE"
    assert len(before["usage_events"]) + 1 == await books.event_count(account.billing.engine, account.account_id)
    # A refused id was not used up.
    assert (await account.correct("c4", "e2", 1)).left == 9


async def test_a_repetition_that_counted_nothing_has_nothing_left(account: Account) -> None:
    await account.record("e1", "runs", 1, retry_attempt=1)
    assert (await refusal_of(account, "c1", "e1")).reason == "CORRECTION_TOO_LARGE"


async def test_repeat_gives_the_first_answer_again(account: Account) -> None:
    await account.record("e1", "runs", 4)
    first = await account.correct("c1", "e1", 3)
    await account.record("e2", "runs", 1)
    before = await books.contents(account.billing.engine)
    repeated = await account.correct("c1", "e1", 3)
    assert repeated.duplicate
    repeated.duplicate = False
    assert repeated == first
    assert await books.contents(account.billing.engine) == before


async def test_an_id_with_other_content_is_refused(account: Account) -> None:
    await account.record("e1", "runs", 4)
    await account.record("e2", "runs", 4)
    await account.correct("c1", "e1", 1)
    before = await books.contents(account.billing.engine)
    for event_id, quantity in (("e1", 2), ("e1", None), ("e2", 1), ("nothing", 1)):
        refusal = await refusal_of(account, "c1", event_id, quantity)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
        assert refusal.metadata == {"event_id": "c1"}
    # Events and corrections share their ids.
    assert (await refusal_of(account, "e2", "e1", 1)).reason == "EVENT_ID_REUSED"
    assert (await refused(account.record("c1", "runs", 1))).reason == "EVENT_ID_REUSED"
    assert await books.contents(account.billing.engine) == before


async def test_a_note_is_part_of_the_content(billing: Billing, account: Account) -> None:
    await account.record("e1", "runs", 4)
    request = usage_pb2.CorrectUsageRequest(account_id="org_1", correction_id="c1", event_id="e1", note="twice")
    assert not (await billing.usage.CorrectUsage(request)).duplicate
    assert (await billing.usage.CorrectUsage(request)).duplicate
    request.note = "thrice"
    assert (await refused(billing.usage.CorrectUsage(request))).reason == "EVENT_ID_REUSED"


async def test_a_correction_of_no_event_is_not_found(account: Account) -> None:
    await account.record("e1", "runs", 4)
    await account.correct("c1", "e1", 1)
    other = Account(account.billing, "org_2")
    before = await books.contents(account.billing.engine)
    # An unknown one, one of another account, and a correction.
    for who, event_id in ((account, "nothing"), (other, "e1"), (account, "c1")):
        refusal = await refusal_of(who, "c9", event_id)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND")
        assert refusal.metadata == {"event_id": event_id}
    assert await books.contents(account.billing.engine) == before


async def test_misuse_is_refused_by_field(billing: Billing, account: Account) -> None:
    refusal = await refused(billing.usage.CorrectUsage(usage_pb2.CorrectUsageRequest(quantity=0, note="x" * 501)))
    assert refusal.fields == ("account_id", "correction_id", "event_id", "quantity", "note")
    assert (await refusal_of(account, "c1", "e1", 10**12 + 1)).fields == ("quantity",)
    assert (await refusal_of(account, "c1", "e1", -1)).fields == ("quantity",)


async def test_what_was_charged_is_taken_back_first(account: Account) -> None:
    await account.subscribe("pro")
    first = await account.record("e1", "runs", 190)
    second = await account.record("e2", "runs", 30)
    assert (first.billable, second.billable) == (0, 20)
    # Whichever event is named: what is charged is what remains beyond.
    told = await account.correct("c1", "e1", 15)
    assert (told.billable_quantity, told.used, told.billable) == (15, 205, 5)
    told = await account.correct("c2", "e2", 10)
    assert (told.billable_quantity, told.used, told.billable) == (5, 195, 0)
    again = await account.record("e3", "runs", 6)
    assert (again.billable, again.used) == (1, 201)
    await books.assert_balanced(account.billing.engine)


async def test_correction_counts_in_the_period_of_its_event(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("e1", "runs", 4)
    service_clock.set(datetime(2026, 8, 20, tzinfo=UTC))
    await account.record("e2", "runs", 2)
    told = await account.correct("c1", "e1", 1)
    assert (told.used, told.period_start.ToDatetime().month) == (3, 5)
    assert (await account.check("runs")).used == 2


@pytest.mark.parametrize("times", range(3))
async def test_corrections_at_once_take_back_no_more_than_there_is(account: Account, times: int) -> None:
    await account.record("e1", "runs", 10)
    answers = await asyncio.gather(
        *(account.correct(f"c{n}_{times}", "e1", 3) for n in range(8)), return_exceptions=True
    )
    taken = [one for one in answers if isinstance(one, usage_pb2.CorrectUsageResponse)]
    assert sorted(one.left for one in taken) == [1, 4, 7]
    assert len(answers) - len(taken) == 5
    assert await books.used(account.billing.engine, account.account_id) == 1
    await books.assert_balanced(account.billing.engine)


class TestAgentplatform:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_gauge_is_not_corrected(self, account: Account) -> None:
        await account.record("s1", "user_seats", level=3)
        before = await books.contents(account.billing.engine)
        refusal = await refusal_of(account, "c1", "s1")
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GAUGE_NOT_CORRECTABLE")
        assert refusal.metadata == {"meter": "user_seats"}
        assert await books.contents(account.billing.engine) == before

    async def test_grace_ends_with_the_excess_and_begins_anew(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("e1", "agent_executions", 101)
        service_clock.set(START + timedelta(hours=24))
        assert (await account.check("agent_executions")).reason == GRACE_EXPIRED
        await account.correct("c1", "e1", 1)
        check = await account.check("agent_executions")
        assert (check.decision, check.reason) == (ALLOWED, GRACE)
        assert not check.HasField("grace_ends_at")
        await account.record("e2", "agent_executions", 1)
        check = await account.check("agent_executions")
        assert check.grace_ends_at.ToDatetime(UTC) == START + timedelta(hours=48)
        service_clock.set(START + timedelta(hours=48))
        assert (await account.check("agent_executions")).decision == DENIED

    async def test_a_grace_that_a_correction_ended_does_not_come_back_with_a_smaller_quota(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("e1", "agent_executions", 101)
        await account.correct("c1", "e1", 1)
        service_clock.set(START + timedelta(hours=30))
        request = admin_pb2.SetOverrideRequest(
            account_id=account.account_id, meter="agent_executions", included=50, note="a test", request_id="r1"
        )
        await account.billing.admin.SetOverride(request)
        check = await account.check("agent_executions")
        assert (check.decision, check.reason) == (ALLOWED, GRACE)
        assert not check.HasField("grace_ends_at")

    async def test_correction_that_leaves_an_excess_leaves_the_grace(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("e1", "agent_executions", 110)
        service_clock.advance(timedelta(hours=5))
        await account.correct("c1", "e1", 5)
        check = await account.check("agent_executions")
        assert check.grace_ends_at.ToDatetime(UTC) == START + timedelta(hours=24)


class TestReplicas:
    @pytest.fixture
    def service_clock(self) -> clock.Clock:
        """The time of day, which is what the replicas go by."""
        return clock.Clock()

    @pytest.mark.parametrize("quantity", [None, 10])
    async def test_the_same_correction_at_once_is_made_once(
        self, replicas: list["usage_pb2_grpc.UsageServiceAsyncStub"], account: Account, quantity: int | None
    ) -> None:
        """A repeat that waited for the first one finds nothing left, and must still answer as the first one did."""
        await account.record("e1", "runs", 10)
        request = usage_pb2.CorrectUsageRequest(
            account_id=account.account_id, correction_id="c1", event_id="e1", quantity=quantity
        )
        answers = await asyncio.gather(*(stub.CorrectUsage(request) for stub in replicas for _ in range(3)))
        assert sum(not one.duplicate for one in answers) == 1
        assert {(one.quantity, one.left, one.used) for one in answers} == {(10, 0, 0)}
        await books.assert_balanced(account.billing.engine)

    async def test_corrections_and_records_at_once_add_up(
        self, replicas: list["usage_pb2_grpc.UsageServiceAsyncStub"], account: Account
    ) -> None:
        await account.subscribe("pro")
        for n in range(6):
            await account.record(f"old_{n}", "runs", 50)

        async def answered(call: Callable[[Any], Awaitable[object]], request: object) -> None:
            """Repeat with the same id what a busy machine's database has not answered in time, as callers do."""
            while True:
                try:
                    await call(request)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                else:
                    return

        async def record(n: int) -> None:
            request = usage_pb2.RecordUsageRequest(
                account_id=account.account_id, event_id=f"new_{n}", meter="runs", quantity=7
            )
            await answered(replicas[n % 6].RecordUsage, request)

        async def correct(n: int) -> None:
            request = usage_pb2.CorrectUsageRequest(
                account_id=account.account_id, correction_id=f"c_{n}", event_id=f"old_{n % 6}", quantity=5
            )
            await answered(replicas[n % 6].CorrectUsage, request)

        await asyncio.gather(*(record(n) for n in range(30)), *(correct(n) for n in range(30)))
        assert await books.used(account.billing.engine, account.account_id) == 300 + 210 - 150
        assert (await account.usage("runs"))["runs"].billable == 160
        await books.assert_balanced(account.billing.engine)
