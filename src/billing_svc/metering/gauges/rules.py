"""How a gauge's level moves. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Level:
    """A gauge's level, and when the latest absolute level was measured (None: it only had changes so far)."""

    level: int
    set_at: datetime | None

    def is_newer_than(self, occurred_at: datetime) -> bool:
        """Say whether the latest absolute level was measured after `occurred_at`."""
        return self.set_at is not None and occurred_at < self.set_at

    def changed(self, by: int) -> "Level":
        """Return the level after a change."""
        return replace(self, level=self.level + by)
