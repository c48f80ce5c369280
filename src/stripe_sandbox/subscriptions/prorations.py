"""Prorations: credits and charges of a change within a period, by the second, from the amounts that were billed."""

import datetime as dt
import decimal

from stripe_sandbox import state
from stripe_sandbox.invoices import amounts, lines
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import periods


def debit(amount: int, start: int, end: int) -> Json:
    """Return a record, for the item, of an amount charged for a time; credits are computed from it."""
    return {"amount": amount, "start": start, "end": end}


def credits_for(work: state.Work, subscription: Json, item: Json, at: int) -> list[lines.Charge]:
    """Return the credits for the time from `at` on, one for each charge of the item."""
    price = work.get("price", item["price"])
    given = []
    for billed in item["_debits"]:
        start = max(at, billed["start"])
        if start >= billed["end"]:
            continue
        amount = amounts.share(billed["amount"], billed["end"] - start, billed["end"] - billed["start"])
        given.append(
            lines.Charge(
                amount=-amount,
                currency=price["currency"],
                start=start,
                end=billed["end"],
                quantity=item["quantity"],
                description=f"Unused time on {_named(work, price, item)} after {_day(start)}",
                price=price,
                subscription=subscription["id"],
                item=item["id"],
                proration=True,
            )
        )
    return [charge for charge in given if charge.amount]


def remaining(work: state.Work, subscription: Json, item: Json, anchor: int, at: int) -> lines.Charge:
    """Return the charge for the rest of an item's period, in proportion to a whole period."""
    price = work.get("price", item["price"])
    start, end = periods.current(anchor, price["recurring"], at)
    exact = decimal.Decimal(price["unit_amount_decimal"]) * item["quantity"]
    until = item["current_period_end"]
    return lines.Charge(
        amount=amounts.share(exact, until - at, end - start),
        currency=price["currency"],
        start=at,
        end=until,
        quantity=item["quantity"],
        description=f"Remaining time on {_named(work, price, item)} after {_day(at)}",
        price=price,
        subscription=subscription["id"],
        item=item["id"],
        proration=True,
    )


def _named(work: state.Work, price: Json, item: Json) -> str:
    name = lines.named(work, price)
    return name if item["quantity"] == 1 else f"{item['quantity']} × {name}"  # noqa: RUF001 - as Stripe writes it


def _day(at: int) -> str:
    return f"{dt.datetime.fromtimestamp(at, dt.UTC):%d %b %Y}"
