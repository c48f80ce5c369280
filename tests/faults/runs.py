"""How long the fault tests run, from which seed, and what they tell: briefly but in `make faults`."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

SEED = "BILLING_FAULTS_SEED"
MINUTES = "BILLING_FAULTS_MINUTES"


def nothing(_text: str) -> None:
    pass


@dataclass(slots=True)
class Run:
    """One test's share of a run. `minutes` is what the longest test takes; None: the short version."""

    seed: int
    minutes: float | None = None
    tell: Callable[[str], None] = nothing
    # What it did, for the summary.
    figures: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, tell: Callable[[str], None] = nothing) -> "Run":
        minutes = os.environ.get(MINUTES)
        return cls(int(os.environ.get(SEED, "1")), float(minutes) if minutes else None, tell)

    def rng(self, *more: object) -> random.Random:
        """Return draws that are the same for the same seed; `more` makes them another caller's."""
        return random.Random(repr((self.seed, *more)))  # noqa: S311 - repeatable, not secret

    def times(self, short: int, long: int) -> int:
        """Return how often: `long` in a run of ten minutes or more, less in a shorter one."""
        return short if self.minutes is None else max(short, round(long * min(1.0, self.minutes / 10)))

    def seconds(self, short: float, share: float) -> float:
        """Return how long: a share of the minutes of a long run."""
        return short if self.minutes is None else max(short, share * self.minutes * 60)

    def count(self, **figures: int) -> None:
        """Note what was done, and tell it."""
        self.figures.update(figures)
        self.tell(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in self.figures.items()))
