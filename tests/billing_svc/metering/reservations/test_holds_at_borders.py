"""Held units take up room in whatever period is current; a level's holds know no period."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from google.protobuf import duration_pb2

from billing.v1 import quota_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.quota import check_quota, holds, lookup
from billing_svc.metering.reservations import hold_units
from tests import clocks
from tests.acceptance.accounts import ALLOWED, DENIED, EXHAUSTED, REJECT, START, Account
from tests.billing_svc import books
from tests.billing_svc.service import Billing

RENEWAL = datetime(2026, 6, 11, 9, 30, tzinfo=UTC)
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
A_DAY = duration_pb2.Duration(seconds=86_400)


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(START)


async def hold(account: Account, request_id: str, meter: str, quantity: int) -> quota_pb2.CheckQuotaResponse:
    return await account.check(meter, quantity, reserve=True, request_id=request_id, reservation_ttl=A_DAY)


class TestConsumables:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "kalshibook"

    async def test_holds_of_the_period_before_take_up_room_in_the_next(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.subscribe("project")
        await account.record("before", "credits", 1000)
        service_clock.set(RENEWAL - timedelta(hours=1))
        old = [await hold(account, f"old_{n}", "credits", 1000) for n in range(3)]
        service_clock.set(RENEWAL)
        check = await account.check("credits", 1001)
        assert (check.decision, check.used, check.reserved, check.remaining) == (DENIED, 0, 3000, 1000)
        assert (await account.usage("credits"))["credits"].reserved == 3000
        new = [await hold(account, f"new_{n}", "credits", 1000) for n in range(4)]
        assert [(one.decision, one.reserved) for one in new] == [(ALLOWED, 4000), *[(DENIED, 4000)] * 3]
        # Nor may an event with REJECT take their room, also one that lands in the period before.
        for at in (RENEWAL, RENEWAL - timedelta(minutes=1)):
            denied = await account.record("denied", "credits", occurred_at=at, if_exceeded=REJECT)
            assert (denied.decision, denied.reason, denied.reserved) == (DENIED, EXHAUSTED, 4000)
        for n, one in enumerate([*old, new[0]]):
            settled = await account.record(
                f"run_{n}", "credits", 1000, reservation_id=one.reservation_id, if_exceeded=REJECT
            )
            assert (settled.decision, settled.reservation_outcome, settled.reserved) == (
                ALLOWED,
                usage_pb2.RESERVATION_OUTCOME_SETTLED,
                3000 - 1000 * n,
            )
        check = await account.check("credits")
        assert (check.decision, check.used, check.reserved, check.remaining) == (DENIED, 4000, 0, 0)

    async def test_what_a_hold_of_the_period_before_gives_back_is_room_in_the_next(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.subscribe("project")
        service_clock.set(RENEWAL - timedelta(hours=1))
        kept, given = [await hold(account, f"old_{n}", "credits", 2000) for n in range(2)]
        service_clock.set(RENEWAL)
        await hold(account, "short", "credits", 1)
        assert (await hold(account, "new", "credits", 1)).decision == DENIED
        request = quota_pb2.ReleaseReservationRequest(
            account_id=account.account_id, reservation_id=given.reservation_id
        )
        released = await account.billing.quota.ReleaseReservation(request)
        assert (released.released, released.reserved) == (True, 2000)
        assert (await hold(account, "new", "credits", 1500)).reserved == 3500
        # Its time is over, and nobody has swept it.
        service_clock.set(RENEWAL + timedelta(hours=23))
        assert (await hold(account, "newer", "credits", 2000)).reserved == 3500
        again = await account.billing.quota.ReleaseReservation(
            quota_pb2.ReleaseReservationRequest(account_id=account.account_id, reservation_id=kept.reservation_id)
        )
        assert (again.released, again.state, again.reserved) == (False, quota_pb2.RESERVATION_STATE_EXPIRED, 3500)


class TestLevels:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_a_level_s_hold_knows_no_period(self, account: Account, service_clock: clocks.StillClock) -> None:
        await account.record("seats", "user_seats", level=2)
        service_clock.set(JUNE - timedelta(hours=1))
        held = await hold(account, "invitation", "user_seats", 1)
        service_clock.set(JUNE + timedelta(hours=1))
        other = await account.record("other", "user_seats", 1, if_exceeded=REJECT)
        assert (other.decision, other.used, other.reserved) == (DENIED, 2, 1)
        assert (await hold(account, "another", "user_seats", 1)).decision == DENIED
        settled = await account.record("joins", "user_seats", 1, reservation_id=held.reservation_id, if_exceeded=REJECT)
        assert (settled.decision, settled.used, settled.reserved) == (ALLOWED, 3, 0)
        assert settled.period_start.ToDatetime(UTC) == JUNE


class TestRaces:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "nyqst"

    @pytest.mark.parametrize("before", ["nothing", "the period before", "both periods"])
    async def test_processes_on_both_sides_of_a_border_hold_no_more_than_there_is(
        self, billing: Billing, account: Account, service_clock: clocks.StillClock, before: str
    ) -> None:
        """Their clocks differ by a moment, and the account has used nothing, or has a counter there already."""
        await account.record("known", "reports")
        if before != "nothing":
            service_clock.set(JUNE - timedelta(hours=1))
            await account.record("first", "runs", retry_attempt=1)
        if before == "both periods":
            service_clock.set(JUNE)
            await account.record("second", "runs", retry_attempt=1)
        catalogs = versions.CatalogCache()

        async def reserve(n: int) -> bool:
            now = JUNE + timedelta(milliseconds=1 if n % 2 else -1)
            asked = lookup.MeterQuery(account.account_id, "runs", "")
            question = check_quota.QuotaQuestion(asked, 3, holds.Hold(f"job_{n}", timedelta(hours=1), "test"))
            (answer,) = await billing.transactions.run(lambda conn: hold_units.reserve(conn, catalogs, [question], now))
            assert isinstance(answer, check_quota.QuotaAnswer)
            return answer.decision.allowed

        async with billing.engine.begin() as blocking:
            # Blocks the INSERT of a hold: whoever may decide has decided when both wait.
            await blocking.execute(sa.text("LOCK TABLE reservations IN SHARE MODE"))
            both = asyncio.gather(reserve(0), reserve(1))
            await books.wait_for_waiters(billing.engine, 2)
        held = sum(await both)
        service_clock.set(JUNE + timedelta(seconds=1))
        check = await account.check("runs")
        assert (held, check.reserved) == (1, 3)
