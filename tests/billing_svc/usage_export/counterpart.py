"""Stripe's side of metered billing in place of `client.Stripe`: meters, a subscription, its invoices.

It counts the events that it gets and charges the counted units, by a clock that the test moves; each call has the
outcome that the test chooses. The sandbox does the whole of Stripe; this one is faster, at a hundred periods a second.
"""

import decimal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from billing_svc.metering.quota import periods
from billing_svc.platform import clock, errors
from billing_svc.stripe import client

DRAFT_LASTS = timedelta(hours=1)
IDENTIFIERS_LAST = timedelta(hours=24)

# The outcome of a call: it succeeds; it is refused for now and not made; it is made, but its answer is lost.
Fate = str
FINE, NOT_DONE, UNHEARD = "fine", "not_done", "unheard"


@dataclass
class Event:
    identifier: str
    name: str
    customer: str
    units: int
    timestamp: datetime
    received: datetime


@dataclass
class Cycle:
    """A billing period; `final` once its invoice is final, with the charged units of each meter."""

    start: datetime
    end: datetime
    charged: dict[str, int] = field(default_factory=dict)
    final: bool = False


@dataclass
class Counterpart:
    """A customer with a subscription to metered prices: `prices` by event name, in minor units."""

    clock: clock.Clock
    prices: dict[str, Decimal]
    anchor: datetime
    fate: Callable[[str], Fate] = lambda _call: FINE
    customer_id: str = "cus_org_1"
    subscription_id: str = "sub_1"
    ended_at: datetime | None = None
    events: list[Event] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_invoices: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    cycles: list[Cycle] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def catch_up(self) -> None:
        """Do what is due at the present time: begin periods, finalise invoices."""
        now = self.clock.now()
        if not self.cycles:
            self._begin(self.anchor)
        while self.ended_at is None and self.cycles[-1].end <= now:
            self._begin(self.cycles[-1].end)
        for cycle in self.cycles:
            over = cycle.end if self.ended_at is None else min(cycle.end, self.ended_at)
            final_at = over if self.ended_at is not None and self.ended_at < cycle.end else over + DRAFT_LASTS
            if not cycle.final and final_at <= now:
                cycle.final = True
                # Units that arrive later do not count, though the meter has them.
                cycle.charged = {
                    name: sum(
                        event.units
                        for event in self.events
                        if event.name == name and cycle.start <= event.timestamp < over and event.received < final_at
                    )
                    for name in self.prices
                }

    def _begin(self, at: datetime) -> None:
        month = periods.anchored_month(self.anchor, at)
        self.cycles.append(Cycle(month.start, month.end))

    async def _call(self, name: str, do: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the client
        self.catch_up()
        fate = self.fate(name)
        if fate == NOT_DONE:
            raise errors.StripeUnavailable("brought about by a test")
        result = do()
        if fate == UNHEARD:
            raise errors.StripeUnavailable("brought about by a test")
        return result

    async def meter_event(self, event: client.MeterEvent, idempotency_key: str) -> None:
        assert 0 < len(event.identifier) <= 100
        assert idempotency_key.startswith(event.identifier)
        now = self.clock.now()

        def count() -> None:
            assert now - timedelta(days=35) <= event.reported_for <= now + timedelta(minutes=5)
            known = [one for one in self.events if one.identifier == event.identifier]
            if not any(one.received > now - IDENTIFIERS_LAST for one in known):
                self.events.append(
                    Event(event.identifier, event.event_name, event.customer_id, event.units, event.reported_for, now)
                )

        await self._call("meter_event", count)

    async def meter_ids(self) -> dict[str, list[str]]:
        return dict(await self._call("meters", lambda: {name: [f"mtr_{name}"] for name in self.prices}))

    async def meter_total(self, meter_ids: Sequence[str], customer_id: str, start: datetime, end: datetime) -> int:
        assert all(at.second == at.microsecond == 0 for at in (start, end))
        (meter_id,) = meter_ids
        name = meter_id.removeprefix("mtr_")
        return int(
            await self._call(
                "meter_total",
                lambda: sum(
                    one.units
                    for one in self.events
                    if (one.name, one.customer) == (name, customer_id) and start <= one.timestamp < end
                ),
            )
        )

    async def subscription(self, subscription_id: str) -> client.Data:
        assert subscription_id == self.subscription_id
        return dict(await self._call("subscription", self.shown))

    def shown(self) -> dict[str, Any]:
        cycle = self.cycles[-1]
        period = {
            "current_period_start": int(cycle.start.timestamp()),
            "current_period_end": int(cycle.end.timestamp()),
        }
        names = ["base", *self.prices]
        return {
            "id": self.subscription_id,
            "customer": self.customer_id,
            "status": "active" if self.ended_at is None else "canceled",
            "items": {"data": [{"id": f"si_{name}", "price": {"id": f"price_{name}"}, **period} for name in names]},
            "billing_cycle_anchor": int(self.anchor.timestamp()),
            "created": int(self.anchor.timestamp()),
            "ended_at": None if self.ended_at is None else int(self.ended_at.timestamp()),
        }

    async def invoices_of_subscription(self, subscription_id: str, since: datetime) -> list[client.Data]:
        assert subscription_id == self.subscription_id
        now = self.clock.now()
        return [
            {
                "status": "paid" if cycle.final else "draft",
                "billing_reason": "subscription_cycle",
                "period_start": int(cycle.start.timestamp()),
                "period_end": int(cycle.end.timestamp()),
                "created": int(cycle.end.timestamp()),
                "automatically_finalizes_at": int((cycle.end + DRAFT_LASTS).timestamp()),
                "auto_advance": True,
            }
            for cycle in await self._call("invoices", lambda: list(self.cycles))
            if cycle.end <= now and cycle.end >= since
        ]

    async def write(self, operation: str, params: client.Data, idempotency_key: str) -> client.Data:
        now = self.clock.now()

        def make() -> client.Data:
            made_at, made = self.keys.get(idempotency_key, (now, ""))
            if made and made_at > now - IDENTIFIERS_LAST:
                return {"id": made}
            if operation == "invoiceitems.create":
                made = f"ii_{len(self.items)}"
                self.items[made] = {**params, "id": made, "created": now, "invoice": None}
            elif operation == "invoices.create":
                assert params["pending_invoice_items_behavior"] == "exclude"
                made = f"in_{len(self.own_invoices)}"
                self.own_invoices.append({**params, "id": made, "created": now, "status": "draft"})
            else:
                made = params["invoice"]
                (invoice,) = (one for one in self.own_invoices if one["id"] == made)
                if operation == "invoices.update":
                    invoice["auto_advance"] = params["auto_advance"]
                else:
                    assert operation == "invoices.add_lines"
                    assert not invoice["auto_advance"]
                    for line in params["lines"]:
                        item = self.items[line["invoice_item"]]
                        if item["invoice"] is not None:
                            raise errors.StripeRefused("the item is on an invoice")
                        item["invoice"] = made
            self.keys[idempotency_key] = (now, made)
            return {"id": made}

        return dict(await self._call(operation, make))

    async def customer(self, _customer_id: str) -> client.Data:
        return dict(await self._call("customer", lambda: {"id": self.customer_id}))

    async def payment_methods_of(self, _customer_id: str) -> list[client.Data]:
        return list(await self._call("payment_methods", lambda: [{"id": "pm_1"}]))

    async def invoice(self, invoice_id: str) -> client.Data:
        (found,) = await self._call("invoice", lambda: [one for one in self.own_invoices if one["id"] == invoice_id])
        return dict(found)

    async def invoice_item(self, item_id: str) -> client.Data:
        return dict(await self._call("invoice_item", lambda: self.items[item_id]))

    async def invoice_items_of(self, _customer_id: str, since: datetime) -> list[client.Data]:
        return list(await self._call("items", lambda: [one for one in self.items.values() if one["created"] >= since]))

    async def every_invoice(self, _customer_id: str | None, since: datetime) -> list[client.Data]:
        return list(await self._call("invoices", lambda: [one for one in self.own_invoices if one["created"] >= since]))

    def charged_by_meters(self, name: str) -> list[int]:
        """Return the amount of each period's line of a meter, in minor units."""
        return [
            int((self.prices[name] * cycle.charged[name]).to_integral_value(decimal.ROUND_HALF_UP))
            for cycle in self.cycles
            if cycle.final
        ]


def instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
