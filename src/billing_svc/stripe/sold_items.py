"""The items of a fetched subscription, by what they are to us: base items, metered items, and what is not ours."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.stripe import prices, subscriptions


@dataclass(frozen=True, slots=True)
class SoldItem:
    """An item of ours, with the meaning of its price."""

    item: subscriptions.Item
    price: prices.SoldPrice


@dataclass(frozen=True, slots=True)
class SoldItems:
    """The items of a subscription. `bases`: the items with a plan's price, the item that was added last first."""

    bases: tuple[SoldItem, ...]
    metered: tuple[SoldItem, ...]
    strangers: tuple[subscriptions.Item, ...]

    @property
    def is_ours(self) -> bool:
        """Say whether the subscription has an item of ours."""
        return bool(self.bases or self.metered)

    def period_end(self, fetched: subscriptions.StripeSubscription) -> datetime:
        """Return when the period of the subscription's base item ends; without one, the earliest item's."""
        if self.bases:
            return self.bases[0].item.period_end
        return min(item.period_end for item in fetched.items)

    @property
    def price_ids(self) -> frozenset[str]:
        """Return the prices of the items of ours."""
        return frozenset(one.item.price_id for one in (*self.bases, *self.metered))

    @property
    def split(self) -> tuple[list[subscriptions.Item], list[subscriptions.Item]]:
        """Return the base items and the metered items, without what their prices mean."""
        return [one.item for one in self.bases], [one.item for one in self.metered]


async def read(conn: AsyncConnection, fetched: subscriptions.StripeSubscription, now: datetime) -> SoldItems:
    """Return the items of a subscription; stores prices that were made by hand for a plan or a meter of ours."""
    sold = await prices.learn(conn, [item.price for item in fetched.items], now)
    ours = [SoldItem(item, sold[item.price_id]) for item in fetched.items if item.price_id in sold]
    # Stripe lists items in the order in which they were added; `created` has whole seconds.
    by_age = [one for _, one in sorted(enumerate(ours), key=lambda pair: (pair[1].item.created, pair[0]))]
    return SoldItems(
        bases=tuple(one for one in reversed(by_age) if one.price.is_base),
        metered=tuple(one for one in ours if not one.price.is_base),
        strangers=tuple(item for item in fetched.items if item.price_id not in sold),
    )
