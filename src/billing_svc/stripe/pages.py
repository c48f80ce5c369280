"""Stripe's lists, page by page."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal

from billing_svc.stripe import parse

PAGE_SIZE = 100


async def fetch_all(get: Callable[[parse.Data], Awaitable[parse.Data]], params: parse.Data) -> list[parse.Data]:
    """Return all elements of a list. Raises StripeObjectUnreadable if it is no list, or if its pages do not end."""
    found: list[parse.Data] = []
    more, about = True, "a list of Stripe's"
    while more:
        after = {"starting_after": last_id(found, about)} if found else {}
        page, more = elements(await get({**params, **after, "limit": PAGE_SIZE}), about)
        found += page
    return found


def elements(page: object, about: str) -> tuple[list[parse.Data], bool]:
    """Return the elements of a page, and whether there are more pages; an empty page is the last."""
    fields = parse.StripeFields(page, about)
    data = fields.get("data")
    if not isinstance(data, list):
        raise fields.refused("data", "a list")
    return data, bool(data) and fields.flag("has_more")


def last_id(found: Sequence[object], about: str) -> str:
    """Return the id after which the next page begins."""
    return parse.StripeFields(found[-1], about, f"data[{len(found) - 1}]").text("id")


def units(summary: object) -> int:
    """Return a meter's units, which Stripe writes as a number with a fraction of 0."""
    fields = parse.StripeFields.of(summary, "meter event summary")
    value = fields.get("aggregated_value")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != value // 1:
        raise fields.refused("aggregated_value", "a whole number")
    return int(value)
