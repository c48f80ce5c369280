"""Prorations: credits and charges of a change within a period, by the second, from the amounts that were billed."""

import datetime as dt
import decimal
import json

from stripe_sandbox import state
from stripe_sandbox.invoices import amounts, discounts, lines
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
        charged = billed["amount"] - _discounted(work, item, billed)
        amount = amounts.share(charged, billed["end"] - start, billed["end"] - billed["start"])
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


def _discounted(work: state.Work, item: Json, billed: Json) -> int:
    """Return what discounts took off a charge: a credit gives back only what was charged."""
    row = work.connection.execute(
        "SELECT json_extract(line.value, '$.discount_amounts')"
        " FROM objects, json_each(objects.body, '$.lines.data') AS line WHERE objects.kind = 'invoice'"
        " AND json_extract(line.value, '$.parent.subscription_item_details.subscription_item') = ?"
        " AND json_extract(line.value, '$.period.start') = ? AND json_extract(line.value, '$.period.end') = ?"
        " AND json_extract(line.value, '$.amount') = ? ORDER BY objects.seq DESC",
        (item["id"], billed["start"], billed["end"], billed["amount"]),
    ).fetchone()
    return sum(each["amount"] for each in json.loads(row[0])) if row else 0


def remaining(work: state.Work, subscription: Json, item: Json, anchor: int, at: int) -> lines.Charge:
    """Return the charge for the rest of an item's period, in proportion to a whole period.

    The amount is less discounts in percent, as with `proration_discounts=included`.
    """
    price = work.get("price", item["price"])
    start, end = periods.current(anchor, price["recurring"], at)
    left = discounts.share_left(work, subscription, at)
    exact = decimal.Decimal(price["unit_amount_decimal"]) * item["quantity"] * left
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
