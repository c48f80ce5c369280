"""Stripe's limits: requests a second for each endpoint, and new invoices of a subscription."""

import collections
import dataclasses

from stripe_sandbox import errors


@dataclasses.dataclass(slots=True)
class Limits:
    """The requests of the last second, by endpoint; without `per_second` nothing is limited."""

    per_second: int | None = None
    _latest: dict[str, collections.deque[float]] = dataclasses.field(default_factory=dict)

    def set(self, per_second: int | None) -> None:
        """Limit every endpoint from now on; None: no limit."""
        self.per_second = per_second
        self._latest.clear()

    def check(self, endpoint: str, now: float) -> None:
        """Count a request at a time in seconds. Raises TooMany above the limit; such a request is not counted."""
        if self.per_second is None:
            return
        latest = self._latest.setdefault(endpoint, collections.deque())
        while latest and latest[0] <= now - 1:
            latest.popleft()
        if len(latest) >= self.per_second:
            raise errors.TooMany("Too many requests to this endpoint.", code="rate_limit")
        latest.append(now)
