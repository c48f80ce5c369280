"""Compares a subscription's metered items with the plan as sold. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from billing_svc.catalog import model, parts
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import sold_items, subscriptions


@dataclass(frozen=True, slots=True)
class ItemsCheck:
    """How the items differ. `missing` and `extra` are event names of meters; an event name may be extra twice."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def compare(items: sold_items.SoldItems, catalog: model.Catalog, plan: parts.Plan, *, is_plan: bool) -> ItemsCheck:
    """Return how the metered items differ from those of the plan, or of its overlay if the subscription has no base."""
    sold = plan.metered_prices if is_plan else plan.charged(pay_as_you_go=True)
    by_event: dict[str, list[sold_items.SoldItem]] = {}
    for one in items.metered:
        by_event.setdefault(one.price.stripe_event_name or "", []).append(one)
    missing: list[str] = []
    extra: list[str] = []
    differences: list[str] = []
    for price in sold:
        # The catalog's own price first: a further item is what was added.
        found = sorted(by_event.pop(price.lookup_key, []), key=lambda one: one.price.by_hand)
        if not found:
            missing.append(price.lookup_key)
            differences.append(f"no item bills {price.lookup_key}")
            continue
        differences += _price_differences(found[0].item.price, price, catalog)
        extra += [price.lookup_key] * (len(found) - 1)
        differences += [f"price {one.item.price_id} bills {price.lookup_key} a second time" for one in found[1:]]
    for event_name, found in by_event.items():
        extra += [event_name] * len(found)
        differences += [f"price {one.item.price_id} of {event_name} was added" for one in found]
    differences += _strangers(items.strangers)
    return ItemsCheck(tuple(missing), tuple(extra), tuple(differences))


def _price_differences(
    there: subscriptions.ItemPrice, sold: parts.MeteredPrice, catalog: model.Catalog
) -> Iterator[str]:
    """Yield a difference if an item's price is not the price of the sale. Stripe's old objects may lack the amount."""
    wanted = pricing_rules.unit_price_in_minor_units(catalog, sold)
    if there.product_id and there.unit_amount != wanted:
        amount = "tiers" if there.unit_amount is None else f"{there.unit_amount.normalize():f}"
        instead = f"{amount} minor units instead of {wanted.normalize():f}"
        yield f"price {there.price_id} bills {sold.lookup_key} at {instead}"


def _strangers(items: Sequence[subscriptions.Item]) -> list[str]:
    return [f"metered price {item.price_id} was added" for item in items if item.price.is_metered]
