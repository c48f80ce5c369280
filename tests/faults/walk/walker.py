"""A person at Stripe's dashboard and a customer, who do one thing after the other, and the list of what they did."""

import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import grpc

from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.faults.walk.expected import OVER, Expected
from tests.faults.walk.mail import LateWorld
from tests.faults.walk.shop import INCLUDED, PER_SEAT, Shop

ACCOUNT = "org_1"
SUBSCRIPTIONS = "/v1/subscriptions"
DAYS = 90
# An INTERNAL or UNKNOWN answer is a defect, whatever people did.
DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}

Act = Callable[["Walker"], Awaitable[None]]
Data = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Use:
    """A recorded event: its units, those beyond the quota, when it counts, and the beginning of its quota period."""

    units: int
    billable: int
    at: datetime
    period: datetime


@dataclass
class Uses:
    """What the account's callers know of their own usage."""

    events: dict[str, Use] = field(default_factory=dict)
    # Units that a check allowed and that are not charged, by the beginning of their quota period.
    granted: dict[datetime, int] = field(default_factory=dict)
    holds: list[str] = field(default_factory=list)
    # Units beyond the quota that were taken back.
    corrected: int = 0

    @property
    def beyond(self) -> int:
        """Return the units beyond the quota that the answers promised to charge."""
        return sum(use.billable for use in self.events.values()) - self.corrected


@dataclass
class Walker:
    """The acts of a seed; `draw` decides about the acts, `luck` about faults."""

    ledger: Ledger
    post: LateWorld
    shop: Shop
    seed: int
    story: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    uses: Uses = field(default_factory=Uses)
    page: str = ""
    comparisons: int = 0
    # What was included, from when on.
    timeline: list[tuple[datetime, int]] = field(init=False)
    customers: set[str] = field(default_factory=set)
    # What explains a finding.
    may_bill_twice: bool = False
    deleted_customers: set[str] = field(default_factory=set)
    deleted_items: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)  # noqa: S311 - repeatable, not secret
        self.luck = random.Random(-self.seed - 1)  # noqa: S311 - as above
        self.expected = Expected(self.shop)
        # Before the first purchase.
        self.timeline = [(self.now, INCLUDED["free"])]
        self.is_by_hand = False
        self.has_faults = False

    @property
    def now(self) -> datetime:
        return self.ledger.world.billing.clock.now()

    def note(self, what: str) -> None:
        self.story.append(f"{self.now:%m-%d %H:%M:%S} {what}")

    def told(self) -> str:
        """Return the list of acts, to be repeated by hand."""
        return "\n".join([f"seed {self.seed}", *self.story])

    # What people do at Stripe. No fault strikes them: they would press the button again.

    async def stripe(self, method: str, path: str, **params: object) -> Data:
        """Do something in the dashboard; returns Stripe's answer, or {} if it refused."""
        asked = ", ".join(f"{name}={value}" for name, value in params.items())
        pairs = {name: str(value) for name, value in params.items()}
        headers = {"Idempotency-Key": f"by-hand-{uuid.uuid4()}"} if method == "POST" else {}
        given: Data = {"data": pairs} if method == "POST" else {"params": pairs}
        answer = await self._by_hand(
            lambda: self.ledger.world.sandbox.http.request(method, path, headers=headers, **given)
        )
        data: Data = answer.json()
        why = "" if answer.is_success else f": refused, {data['error'].get('message', '')}"
        made = f" -> {data['id']}" if answer.is_success and method == "POST" and data.get("id") else ""
        self.note(f"{method} {path} {asked}{made}{why}")
        return data if answer.is_success else {}

    async def press(self, url: str, **fields: str) -> Data:
        """Press a button of a page of Stripe's; returns {} if it is not possible."""
        headers = {"Accept": "application/json"}
        answer = await self._by_hand(
            lambda: self.ledger.world.sandbox.http.post(url, headers=headers, data=fields or None)
        )
        self.note(f"pressed {url} {fields}{'' if answer.is_success else ': not possible'}")
        data: Data = answer.json() if answer.is_success else {}
        return data

    async def control(self, method: str, path: str, body: object = None) -> None:
        self.note(f"{method} /_sandbox/{path} {body}")
        await self.ledger.world.sandbox.control(method, path, body)

    async def all(self, path: str, **params: object) -> list[Data]:
        """Look at a whole list, the oldest first."""
        found = await self._by_hand(lambda: self.ledger.world.sandbox.all(path, **params))
        return found[::-1]

    async def _by_hand(self, call: Callable[[], Awaitable[_T]]) -> _T:
        self.is_by_hand = True
        try:
            return await call()
        finally:
            self.is_by_hand = False

    # What there is.

    async def customer(self) -> str | None:
        """Return the account's customer, if it has one that was not deleted."""
        own = [one for one in await self.all("/v1/customers") if one["metadata"].get("account_id") == ACCOUNT]
        return str(own[-1]["id"]) if own else None

    async def subscriptions(self) -> list[Data]:
        """Return all subscriptions of the account's customers, the oldest first."""
        own = [one for one in await self.all(SUBSCRIPTIONS, status="all") if one["customer"] in self.customers]
        self.expected.learn(own)
        return own

    async def living(self) -> list[Data]:
        return [one for one in await self.subscriptions() if one["status"] not in OVER]

    async def a_subscription(self) -> Data | None:
        return self.one_of(await self.living())

    async def path(self) -> str | None:
        """Return the path of a subscription that has not ended."""
        found = await self.a_subscription()
        return None if found is None else f"{SUBSCRIPTIONS}/{found['id']}"

    async def an_invoice(self, *statuses: str) -> Data | None:
        own = [one for one in await self.all("/v1/invoices") if one["customer"] in self.customers]
        return self.one_of([one for one in own if one["status"] in statuses])

    def one_of(self, found: Sequence[_T]) -> _T | None:
        return self.draw.choice(found) if found else None

    async def meet(self) -> None:
        """Note the account's customers, also those that are deleted later."""
        customer = await self.customer()
        if customer is not None:
            self.customers.add(customer)

    # Callers.

    async def tried(self, call: Awaitable[Any]) -> Any:  # noqa: ANN401 - the call's answer
        """Call the service; a refusal is noted, a defect fails the test."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() in DEFECTS:
                raise
            self.note(f"  {error.code().name} {error.details()}")
            return None

    def unique(self) -> str:
        return uuid.UUID(int=self.draw.getrandbits(128)).hex

    # The walk.

    async def walk(self, acts: Sequence[tuple[Act, int]], number: int, between: Act) -> None:
        """Do random acts over three months, about `number`; often with `between` before them."""
        ends = self.now + timedelta(days=DAYS)
        mean = timedelta(days=DAYS) / number
        while self.now < ends:
            if self.draw.random() < 0.6:
                await self.do(between)
            ((act, _),) = self.draw.choices(acts, [weight for _, weight in acts])
            await self.do(act)
            # Often several acts in a row, and then nothing for days.
            if self.draw.random() < 0.4:
                gap = timedelta(seconds=self.draw.randint(2, 300))
            else:
                gap = mean * 1.6 * self.draw.expovariate(1.0)
            await self.pass_time(min(gap + timedelta(seconds=2), ends - self.now + timedelta(seconds=1)))

    async def do(self, act: Act) -> None:
        name = act.__name__
        self.note(f"{name}: {(act.__doc__ or '').strip().rstrip('.')}")
        self.done[name] = self.done.get(name, 0) + 1
        await act(self)
        await self.meet()
        if self.draw.random() < 0.6:
            await self.work()

    async def pass_time(self, by: timedelta) -> None:
        await self.ledger.world.advance(by, self.work, deliver=False)

    async def work(self) -> None:
        """Let the worker do everything that is due; in a calm moment, compare the plan with the written rules."""
        await self.ledger.work()
        await self.assert_no_crash()
        await self.see()
        if not self.has_faults and not self.post.held and not await self.ledger.world.rows(*self.waiting):
            await self.compare_plan()

    async def assert_no_crash(self) -> None:
        """An event that crashes would wait for ever."""
        crashed = [row for row in await self.ledger.world.rows(*self.waiting) if "internal error" in (row.note or "")]
        assert not crashed, f"{[(row.type, row.object_id, row.note) for row in crashed]}"

    @property
    def waiting(self) -> tuple[Any, Any]:
        """The events that wait: a table and a condition."""
        return tables.stripe_events, tables.stripe_events.c.state == "waiting"

    async def see(self) -> None:
        """Note what is included now: what Stripe has, and what the service still knows."""
        subscriptions, told = await self.subscriptions(), await self.ledger.told()
        at_stripe = INCLUDED[self.expected.plan(subscriptions)] * self.expected.quantity(subscriptions)
        known = INCLUDED[told.plan] * (told.quantity if told.plan in PER_SEAT else 1)
        self.timeline.append((self.now, max(at_stripe, known)))

    async def compare_plan(self) -> None:
        """Assert that the service has the plan that follows from what Stripe has."""
        wanted = self.expected.plan(await self.subscriptions())
        told = await self.ledger.told()
        assert told.plan == wanted, f"plan {told.plan} instead of {wanted}"
        self.comparisons += 1

    def included_between(self, start: datetime, end: datetime) -> int:
        """Return the most units that were included at any time between two instants."""
        before = [included for at, included in self.timeline if at <= start] or [self.timeline[0][1]]
        return max(before[-1], *(included for at, included in self.timeline if start < at < end), 0)
