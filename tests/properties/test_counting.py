"""For any order of actions by callers, Stripe, operators and the clock, the service and a simple model agree."""

import asyncio
import itertools
from collections.abc import Awaitable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

import grpc
import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.gauges import open_periods
from billing_svc.platform.database import tables
from tests import clocks
from tests.acceptance import told
from tests.acceptance.accounts import START
from tests.billing_svc.service import Billing
from tests.properties import model, offers

pytestmark = pytest.mark.long

T = TypeVar("T")

ACCOUNT = "org_1"
# A step is a few statements; a step that takes longer hangs.
STEP_SECONDS_MAX = 30

CONSUMABLES = st.sampled_from(offers.CONSUMABLES)
GAUGES = st.sampled_from(offers.GAUGES)
METERS = st.sampled_from(offers.CONSUMABLES + offers.GAUGES)
UNITS = st.integers(1, 7)
MOVES = st.sampled_from(
    [
        timedelta(seconds=1),
        timedelta(minutes=10),
        timedelta(hours=13),
        timedelta(days=20),
        timedelta(days=40),
    ]
)
# When an event happened, relative to now.
AGES = st.sampled_from(
    [None, None, timedelta(minutes=-4), timedelta(microseconds=1), timedelta(minutes=30), timedelta(hours=1)]
)
HOLDS = st.sampled_from([timedelta(minutes=10), timedelta(hours=14), timedelta(hours=24)])
PLANS = st.sampled_from(offers.SOLD)
SEATS = st.integers(1, 3)

_BOOKS = sa.text("""
    SELECT c.meter, c.period_start, c.used, c.billable,
           coalesce(sum(e.units), 0) AS event_units, coalesce(sum(e.billable), 0) AS event_billable
      FROM usage_counters c LEFT JOIN usage_events e USING (account_id, meter, period_start)
     GROUP BY c.meter, c.period_start, c.used, c.billable
""")
_LEVELS = sa.text("SELECT meter, level FROM gauge_levels WHERE level <> 0")


class Counting(stateful.RuleBasedStateMachine):
    """An account on the real server, and its model."""

    events: "stateful.Bundle[str]" = stateful.Bundle("events")
    holds: "stateful.Bundle[str]" = stateful.Bundle("holds")

    def __init__(self, billing: Billing, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._billing, self._loop = billing, loop
        self._ids = (f"id_{n}" for n in itertools.count(1))
        self._told: told.Told | None = None
        # Requests with their answers, for repeats.
        self._sent: dict[str, tuple[usage_pb2.RecordUsageRequest, usage_pb2.RecordUsageResponse]] = {}
        # Reserving checks with their answers, for repeats.
        self._promised: dict[str, tuple[quota_pb2.CheckQuotaRequest, quota_pb2.CheckQuotaResponse]] = {}
        # A hard limit that an admission by the last step must not have exceeded.
        self._hard: tuple[tuple[str, datetime], int] | None = None
        assert isinstance(billing.clock, clocks.StillClock)
        self._clock = billing.clock
        self._clock.set(START)
        self.account = model.Account(START)
        self._run(self._empty())

    # The clock, Stripe and operators.

    @stateful.initialize(plan=PLANS, seats=SEATS)
    def begin(self, plan: str, seats: int) -> None:
        """Begins with a subscription: half of all possible errors need it."""
        self.subscribe(plan, seats)

    @stateful.rule(by=MOVES)
    def move_the_clock(self, by: timedelta) -> None:
        self._clock.advance(by)
        self.account.now = self._clock.now()

    @stateful.rule(data=st.data(), by=st.sampled_from([timedelta(microseconds=-1), timedelta()]))
    def move_to_where_something_ends(self, data: st.DataObject, by: timedelta) -> None:
        """Move to the microsecond at which a period, a grace, an override or the late time ends, or just before."""
        ends = [at for at in self.account.ends() if at + by > self.account.now]
        self._clock.set(data.draw(st.sampled_from(ends)) + by)
        self.account.now = self._clock.now()
        self._check_every_meter()

    @stateful.precondition(lambda self: not self._live)
    @stateful.rule(plan=PLANS, seats=SEATS)
    def subscribe(self, plan: str, seats: int) -> None:
        name, now = next(self._ids), self.account.now
        self.account.subscriptions.append(model.Subscription(name, plan, seats, start=now, anchor=now))
        self._told = told.Told(plan, since=now, account_id=ACCOUNT, subscription_id=name, quantity=seats)
        self._tell()

    @stateful.precondition(lambda self: self._live)
    @stateful.rule(plan=PLANS, seats=SEATS)
    def change_the_plan(self, plan: str, seats: int) -> None:
        live = self._held
        live.plan, live.seats = plan, seats
        self._tell(plan=plan, quantity=seats)
        self._check_every_meter()

    @stateful.precondition(lambda self: self._live)
    @stateful.rule(
        status=st.sampled_from(["active", "past_due", "trialing", "unpaid", "paused", "canceled"]), after=MOVES
    )
    def change_the_status(self, status: str, after: timedelta) -> None:
        """Also schedule the end while it is trialing: a separate rule for that would be drawn too rarely."""
        live, now = self._held, self.account.now
        if status == "canceled":
            live.end, live.over = min(now, live.end or now), True
            self._tell(status=status, ended_at=now)
        elif status in {"unpaid", "paused"}:
            live.end = live.end if live.end is not None and live.end <= now else now
            self._tell(status=status)
        else:
            if status == "trialing":
                live.cancel_at = now + after
            live.end = live.cancel_at
            self._tell(status=status, cancel_at=live.cancel_at)

    @stateful.rule(
        meter=METERS, included=st.none() | st.integers(0, 12), after=st.none() | MOVES, what=st.integers(0, 3)
    )
    def let_an_operator_act(self, meter: str, included: int | None, after: timedelta | None, what: int) -> None:
        """Switch pay-as-you-go, set an override, or remove one."""
        if what in {0, 1}:
            self._switch_pay_as_you_go(after, on=what == 0)
        elif what == 2:
            self._set_override(meter, included, after)
        else:
            self.account.overrides.pop(meter, None)
            table = tables.account_overrides
            self._run(self._execute(sa.delete(table).where(table.c.meter == meter)))

    def _switch_pay_as_you_go(self, after: timedelta | None, *, on: bool) -> None:
        """Under the plan's subscription; without a plan, under a metered-only subscription that may end later."""
        now, held = self.account.now, self.account.subscription(self.account.now)
        if on and held is None:
            end = None if after is None else now + after
            held = model.Subscription(next(self._ids), "free", 1, start=now, anchor=now, end=end)
            self.account.metered_only.append(held)
            metered = told.Told(
                "free", price="", since=now, account_id=ACCOUNT, subscription_id=held.name, cancel_at=end
            )
            self._run(metered.apply(self._billing.transactions, now))
        under = held.name if on and held is not None else None
        self.account.pay_as_you_go_under = under
        row = {"account_id": ACCOUNT, "created_at": now, "pay_as_you_go_under": under}
        statement = postgresql.insert(tables.accounts).values(row)
        changes = {"pay_as_you_go_under": under}
        self._run(self._execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=changes)))

    def _set_override(self, meter: str, included: int | None, after: timedelta | None) -> None:
        expires_at = None if after is None else self.account.now + after
        self.account.overrides[meter] = (included, expires_at)
        values = {
            "included": included,
            "expires_at": expires_at,
            "note": "a test",
            "set_by": "caller:test",
            "set_at": self.account.now,
        }
        statement = postgresql.insert(tables.account_overrides).values(account_id=ACCOUNT, meter=meter, **values)
        self._run(self._execute(statement.on_conflict_do_update(index_elements=["account_id", "meter"], set_=values)))

    @stateful.rule()
    def let_the_worker_open_gauges(self) -> None:
        self.account.open_gauges()
        now, catalogs = self.account.now, versions.CatalogCache()
        self._run(self._billing.transactions.run(lambda conn: open_periods.open_due(conn, catalogs, now)))

    # Callers.

    @stateful.rule(meter=METERS, units=UNITS)
    def check(self, meter: str, units: int) -> None:
        expected = self.account.check(meter, units)
        request = quota_pb2.CheckQuotaRequest(account_id=ACCOUNT, meter=meter, quantity=units)
        answer = self._run(self._billing.quota.CheckQuota(request))
        assert _said(answer) == (expected.allowed, expected.used)
        assert (answer.overage, answer.cost) == (expected.billable, units)
        assert answer.reserved == self.account.reserved(meter)

    @stateful.rule(target=holds, meter=METERS, units=UNITS, ttl=HOLDS)
    def hold(self, meter: str, units: int, ttl: timedelta) -> "stateful.MultipleResults[str] | str":
        name = next(self._ids)
        expected = self.account.hold(name, meter, units, ttl)
        request = quota_pb2.CheckQuotaRequest(
            account_id=ACCOUNT, meter=meter, quantity=units, reserve=True, request_id=name
        )
        request.reservation_ttl.FromTimedelta(ttl)
        answer = self._run(self._billing.quota.CheckQuota(request))
        assert _said(answer) == (expected.allowed, expected.used)
        assert answer.reserved == self.account.reserved(meter)
        terms, counter = self.account.terms(meter, self.account.now), self.account.present(meter)
        if not expected.allowed:
            return stateful.multiple()
        if terms.beyond == "deny" and terms.included is not None:
            assert self.account.consumed(meter, counter) + answer.reserved <= terms.included
        self._promised[name] = (request, answer)
        return name

    @stateful.rule(hold=holds)
    def repeat_a_hold(self, hold: str) -> None:
        """The first answer again, whatever has changed; of a closed one, what became of it."""
        request, first = self._promised[hold]
        again = self._run(self._billing.quota.CheckQuota(request))
        if self.account.is_live(self.account.holds[hold]):
            assert again == first
            return
        assert again.reason == decision_pb2.DECISION_REASON_RESERVATION_CLOSED
        numbers = ("used", "reserved", "included", "remaining", "cost", "overage", "plan", "period_start", "period_end")
        assert [getattr(again, name) for name in numbers] == [getattr(first, name) for name in numbers]

    @stateful.rule(hold=holds)
    def release(self, hold: str) -> None:
        held = self.account.holds[hold]
        was_live = self.account.is_live(held)
        request = quota_pb2.ReleaseReservationRequest(
            account_id=ACCOUNT, reservation_id=self._promised[hold][1].reservation_id
        )
        assert self._run(self._billing.quota.ReleaseReservation(request)).released == was_live
        held.closed = True

    @stateful.rule(target=events, hold=holds, units=UNITS, age=AGES, reject=st.booleans())
    def settle(
        self, hold: str, units: int, age: timedelta | None, *, reject: bool
    ) -> "stateful.MultipleResults[str] | str":
        """With less or more than was held, in whatever period, under whatever terms."""
        held = self.account.holds[hold]
        was_live = self.account.is_live(held)
        reservation_id = self._promised[hold][1].reservation_id
        request = _request(meter=held.meter, quantity=units, reservation_id=reservation_id)
        request, at = self._sendable(request, age, reject=reject)
        if held.meter in offers.GAUGES:
            happened_at = None if age is None else at
            expected = self.account.move_level(
                request.event_id, held.meter, happened_at, to=None, by=units, reject=reject, hold=held
            )
        else:
            expected = self.account.record(request.event_id, held.meter, units, at, reject=reject, hold=held)
        assert expected is not None
        answer = self._run(self._billing.usage.RecordUsage(request))
        assert _told(answer) == expected
        if not expected.allowed:
            return stateful.multiple()
        assert (answer.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_SETTLED) == was_live
        if held.meter in offers.GAUGES:
            return stateful.multiple()
        self._sent[request.event_id] = (request, answer)
        return request.event_id

    @stateful.rule(target=events, meter=CONSUMABLES, units=UNITS, age=AGES, reject=st.booleans())
    def record(
        self, meter: str, units: int, age: timedelta | None, *, reject: bool
    ) -> "stateful.MultipleResults[str] | str":
        return self._record(_request(meter=meter, quantity=units), meter, units, age, reject=reject)

    @stateful.rule(target=events, meter=CONSUMABLES, is_retry=st.booleans(), reject=st.booleans())
    def record_an_operation_or_a_retry(
        self, meter: str, *, is_retry: bool, reject: bool
    ) -> "stateful.MultipleResults[str] | str":
        if is_retry:
            return self._record(_request(meter=meter, quantity=5, retry_attempt=1), meter, 0, None, reject=reject)
        return self._record(_request(operation="big", quantity=2), "hard", 2 * offers.BIG, None, reject=reject)

    @stateful.rule(meter=GAUGES, level=st.integers(0, 9), age=AGES, reject=st.booleans())
    def set_a_level(self, meter: str, level: int, age: timedelta | None, *, reject: bool) -> None:
        self._move_level(_request(meter=meter, level=level), meter, age, to=level, by=0, reject=reject)

    @stateful.rule(meter=GAUGES, by=st.integers(-4, 4).filter(bool), age=AGES, reject=st.booleans())
    def change_a_level(self, meter: str, by: int, age: timedelta | None, *, reject: bool) -> None:
        self._move_level(_request(meter=meter, quantity=by), meter, age, to=None, by=by, reject=reject)

    @stateful.rule(event=events)
    def repeat(self, event: str) -> None:
        request, first = self._sent[event]
        answer = self._run(self._billing.usage.RecordUsage(request))
        assert answer.duplicate
        answer.duplicate = False
        assert answer == first

    @stateful.rule(target=events, parts=st.lists(st.tuples(CONSUMABLES, UNITS, AGES, st.booleans()), max_size=6))
    def record_a_batch(self, parts: list[tuple[str, int, timedelta | None, bool]]) -> "stateful.MultipleResults[str]":
        requests, expected = [], []
        for meter, units, age, reject in parts:
            request, at = self._sendable(_request(meter=meter, quantity=units), age, reject=reject)
            requests.append(request)
            expected.append(self.account.record(request.event_id, meter, units, at, reject=reject))
        if not requests:
            return stateful.multiple()
        # The first request again: a duplicate, or denied again.
        requests.append(requests[0])
        batch = usage_pb2.BatchRecordUsageRequest(events=requests)
        answers = [result.answer for result in self._run(self._billing.usage.BatchRecordUsage(batch)).results]
        assert [_told(answer) for answer in answers[:-1]] == expected
        assert answers[-1].duplicate == expected[0].allowed
        kept = [(request, answer) for request, answer in zip(requests, answers, strict=True) if _is_kept(answer)]
        self._sent |= {request.event_id: (request, answer) for request, answer in kept}
        return stateful.multiple(*(request.event_id for request, _ in kept))

    @stateful.rule(event=events, units=st.none() | st.integers(1, 3))
    def correct(self, event: str, units: int | None) -> None:
        expected = self.account.correct(event, units)
        request = usage_pb2.CorrectUsageRequest(
            account_id=ACCOUNT, correction_id=next(self._ids), event_id=event, quantity=units
        )
        call = self._billing.usage.CorrectUsage(request)
        if expected is None:
            assert self._refused(call) is grpc.StatusCode.FAILED_PRECONDITION
            return
        answer = self._run(call)
        assert (answer.quantity, answer.billable_quantity) == expected
        assert answer.left == self.account.events[event].left
        again = self._run(self._billing.usage.CorrectUsage(request))
        assert (again.duplicate, again.quantity, again.used) == (True, answer.quantity, answer.used)

    # Invariants.

    @stateful.invariant()
    def the_books_balance(self) -> None:
        rows, levels = self._run(self._books())
        kept = {(row.meter, row.period_start): (row.used, row.billable) for row in rows}
        for row in rows:
            assert 0 <= row.billable <= row.used
            if row.meter in offers.CONSUMABLES:
                assert (row.used, row.billable) == (row.event_units, row.event_billable)
        assert {key: totals for key, totals in kept.items() if any(totals)} == {
            key: (one.used, one.billable) for key, one in self.account.counters.items() if one.used or one.billable
        }
        assert levels == {meter: level for meter, (level, _) in self.account.levels.items() if level}
        if self._hard is not None:
            key, included = self._hard
            used, billable = kept[key]
            assert (levels.get(key[0], 0) if key[0] in offers.GAUGES else used - billable) <= included
            self._hard = None

    # Helpers.

    def _check_every_meter(self) -> None:
        """Check a unit of each meter: after these steps answers change without a call that would show it."""
        meters = offers.CONSUMABLES + offers.GAUGES
        requests = [quota_pb2.CheckQuotaRequest(account_id=ACCOUNT, meter=meter) for meter in meters]

        async def work() -> list[quota_pb2.CheckQuotaResponse]:
            return await asyncio.gather(*(self._billing.quota.CheckQuota(request) for request in requests))

        for meter, answer in zip(meters, self._run(work()), strict=True):
            expected = self.account.check(meter, 1)
            assert (*_said(answer), answer.overage) == (expected.allowed, expected.used, expected.billable)

    @property
    def _live(self) -> model.Subscription | None:
        return next((one for one in self.account.subscriptions if not one.over), None)

    @property
    def _held(self) -> model.Subscription:
        assert self._live is not None
        return self._live

    def _tell(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Told
        assert self._told is not None
        self._told = self._told.but(**changes)
        self.account.end_what_a_plan_replaces()
        self._run(self._told.apply(self._billing.transactions, self.account.now))

    def _sendable(
        self, request: usage_pb2.RecordUsageRequest, age: timedelta | None, *, reject: bool
    ) -> tuple[usage_pb2.RecordUsageRequest, datetime]:
        """Return a request under a new id, and the instant at which its event happened."""
        request.event_id = next(self._ids)
        if reject:
            request.if_exceeded = usage_pb2.IF_EXCEEDED_REJECT
        if age is None:
            return request, self.account.now
        request.occurred_at.FromDatetime(self.account.now - age)
        return request, self.account.now - age

    def _record(
        self, request: usage_pb2.RecordUsageRequest, meter: str, units: int, age: timedelta | None, *, reject: bool
    ) -> "stateful.MultipleResults[str] | str":
        request, at = self._sendable(request, age, reject=reject)
        key, terms = self.account.target(meter, at)
        expected = self.account.record(request.event_id, meter, units, at, reject=reject)
        answer = self._run(self._billing.usage.RecordUsage(request))
        assert _told(answer) == expected
        if not expected.allowed:
            return stateful.multiple()
        self._note_admission(key, terms, units, reject=reject)
        self._sent[request.event_id] = (request, answer)
        return request.event_id

    def _move_level(
        self,
        request: usage_pb2.RecordUsageRequest,
        meter: str,
        age: timedelta | None,
        *,
        to: int | None,
        by: int,
        reject: bool,
    ) -> None:
        request, at = self._sendable(request, age, reject=reject)
        key, terms = self.account.target(meter, self.account.now)
        happened_at = None if age is None else at
        expected = self.account.move_level(request.event_id, meter, happened_at, to=to, by=by, reject=reject)
        call = self._billing.usage.RecordUsage(request)
        if expected is None:
            assert self._refused(call) is grpc.StatusCode.FAILED_PRECONDITION
            return
        assert _told(self._run(call)) == expected
        if expected.allowed:
            self._note_admission(key, terms, expected.units, reject=reject)

    def _note_admission(self, key: tuple[str, datetime], terms: model.Terms, units: int, *, reject: bool) -> None:
        if reject and units > 0 and terms.beyond == "deny" and terms.included is not None:
            self._hard = (key, terms.included)

    async def _books(self) -> tuple[list[Any], Mapping[str, int]]:
        async with self._billing.engine.connect() as connection:
            rows = list(await connection.execute(_BOOKS))
            return rows, {row.meter: row.level for row in await connection.execute(_LEVELS)}

    async def _empty(self) -> None:
        async with self._billing.engine.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                if table is not tables.catalog_versions:
                    await connection.execute(sa.delete(table))

    async def _execute(self, statement: sa.Executable) -> None:
        async with self._billing.engine.begin() as connection:
            await connection.execute(statement)

    def _refused(self, call: Awaitable[object]) -> grpc.StatusCode:
        try:
            self._run(call)
        except grpc.aio.AioRpcError as error:
            return error.code()
        raise AssertionError("it was not refused")

    def _run(self, work: Awaitable[T]) -> T:
        async def step() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(step(), self._loop).result(STEP_SECONDS_MAX)


def _request(**fields: Any) -> usage_pb2.RecordUsageRequest:  # noqa: ANN401 - the message's own
    return usage_pb2.RecordUsageRequest(account_id=ACCOUNT, **fields)


def _is_kept(answer: usage_pb2.RecordUsageResponse) -> bool:
    return answer.decision == decision_pb2.DECISION_ALLOWED and not answer.duplicate


def _said(answer: quota_pb2.CheckQuotaResponse) -> tuple[bool, int]:
    return answer.decision == decision_pb2.DECISION_ALLOWED, answer.used


def _told(answer: usage_pb2.RecordUsageResponse) -> model.Told:
    allowed = answer.decision == decision_pb2.DECISION_ALLOWED
    return model.Told(allowed, answer.used, answer.billable, answer.cost)


async def test_the_books_are_the_model_s(billing: Billing) -> None:
    loop = asyncio.get_running_loop()
    # In a separate thread, because Hypothesis does not await.
    await asyncio.to_thread(
        stateful.run_state_machine_as_test,
        lambda: Counting(billing, loop),  # type: ignore[arg-type]  # any callable that makes one
        settings=hypothesis.settings.get_profile("properties"),
    )
