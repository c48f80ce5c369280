"""Stripe's deliveries with faults: each event may come late, twice, or out of order; none is lost for ever."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.billing_svc.sandboxed import World

LATE_MAX = timedelta(days=3)


@dataclass
class LateWorld(World):
    """A world whose events a test holds back."""

    luck: random.Random = field(default_factory=random.Random)
    is_late: bool = False
    held: list[tuple[datetime, Mapping[str, Any]]] = field(default_factory=list)
    _seen: str = ""

    async def deliver_new(self) -> None:
        """Deliver what is new or due, with the faults of the moment, and apply it."""
        more = True
        while more:
            found, more = await self._listed_after(self._seen)
            self.held += [(self._due_at(), event) for event in found]
            self._seen = found[-1]["id"] if found else self._seen
        now = self.billing.clock.now()
        due = [event for at, event in self.held if at <= now]
        self.held = [one for one in self.held if one[0] > now]
        if self.is_late:
            self.luck.shuffle(due)
            due += [event for event in due if self.luck.random() < 0.2]
        await self.deliver(*due)
        await self.apply_all()

    async def release(self) -> None:
        """End the faults, and deliver everything."""
        self.is_late = False
        self.held = [(datetime.min.replace(tzinfo=self.billing.clock.now().tzinfo), event) for _, event in self.held]
        await self.deliver_new()

    def _due_at(self) -> datetime:
        now = self.billing.clock.now()
        if not self.is_late or self.luck.random() < 0.4:
            return now
        return now + LATE_MAX * self.luck.random() ** 4
