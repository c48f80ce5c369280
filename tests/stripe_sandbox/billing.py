"""A month of billing in a sandbox: a clock that can be set, a customer who subscribes, and the invoices."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import stripe

from stripe_sandbox import state
from tests.stripe_sandbox.conftest import Offer, Sandbox, make_offer, running

DAY = 24 * 3600


@dataclasses.dataclass(frozen=True, slots=True)
class Billing:
    """A running sandbox with an offer and a customer."""

    sandbox: Sandbox
    offer: Offer
    customer: str

    @property
    def api(self) -> Any:  # noqa: ANN401 - the tests check what comes back, not how it is typed
        return self.sandbox.stripe.v1

    async def control(self, route: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        answer = await self.sandbox.http.post(f"/_sandbox/{route}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def now(self) -> int:
        return int((await self.sandbox.http.get("/_sandbox/clock")).json()["now"])

    async def advance(self, seconds: int) -> None:
        await self.control("clock/advance", {"seconds": seconds, "pause_seconds": 0})

    async def advance_to(self, at: int) -> None:
        await self.advance(max(at - await self.now(), 0))

    async def card(self, card: str) -> None:
        await self.control("cards", {"customer": self.customer, "card": card})

    async def subscribe(self, *items: dict[str, Any], **more: object) -> stripe.Subscription:
        made = await self.api.subscriptions.create_async(
            {"customer": self.customer, "items": list(items) or self.both, **more}
        )
        assert isinstance(made, stripe.Subscription)
        return made

    @property
    def both(self) -> list[dict[str, Any]]:
        return [{"price": self.offer.base}, {"price": self.offer.metered}]

    async def subscription(self, subscription_id: str) -> stripe.Subscription:
        found = await self.api.subscriptions.retrieve_async(subscription_id)
        assert isinstance(found, stripe.Subscription)
        return found

    async def use(self, units: int, timestamp: int | None = None, identifier: str | None = None) -> None:
        more = {"timestamp": timestamp, "identifier": identifier}
        await self.api.billing.meter_events.create_async(
            {
                "event_name": "nyqst_pro_runs",
                "payload": {"stripe_customer_id": self.customer, "value": str(units)},
                **{name: value for name, value in more.items() if value is not None},
            }
        )

    async def invoices(self, **where: object) -> list[stripe.Invoice]:
        """Return the customer's invoices, oldest first."""
        return list((await self.api.invoices.list_async({"customer": self.customer, "limit": 100, **where})).data)[::-1]

    async def price(self, unit_amount: int, interval: str = "month", **recurring: object) -> str:
        made = await self.api.prices.create_async(
            {
                "product": self.offer.product,
                "currency": "usd",
                "unit_amount": unit_amount,
                "recurring": {"interval": interval, **recurring},
            }
        )
        return str(made.id)

    async def types(self, beginning: str) -> list[str]:
        """Return the types of the events so far that begin with a text, oldest first."""
        events = (await self.api.events.list_async({"limit": 100})).data
        return [event.type for event in events if event.type.startswith(beginning)][::-1]


def amounts(invoice: stripe.Invoice) -> list[tuple[int, int | None]]:
    """Return the amounts and quantities of an invoice's lines."""
    return sorted((line.amount, line.quantity) for line in invoice.lines.data)


@contextlib.asynccontextmanager
async def billing_at(file: pathlib.Path, at: dt.datetime, webhook_url: str | None = None) -> AsyncIterator[Billing]:
    """Run a sandbox whose clock shows a date, with a customer who has a card."""
    store = state.State(file)
    offset = int(at.timestamp() - time.time())
    await store.run(lambda work: work.set_fact("clock_offset_seconds", offset))
    await asyncio.to_thread(store.close)
    async with running(file, webhook_url) as sandbox:
        offer = await make_offer(sandbox)
        customer = await sandbox.stripe.v1.customers.create_async({"email": "buyer@example.com"})
        made = Billing(sandbox, offer, customer.id)
        await made.card("works")
        yield made
