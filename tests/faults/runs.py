"""How long the fault tests run, with which seed, and what they report: briefly, but in `make faults` for long."""

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
    """A test's part of a run. `minutes` is the time of the longest test; None means the short version."""

    seed: int
    minutes: float | None = None
    tell: Callable[[str], None] = nothing
    # Counts of what it did, for the summary.
    figures: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, tell: Callable[[str], None] = nothing) -> "Run":
        minutes = os.environ.get(MINUTES)
        return cls(int(os.environ.get(SEED, "1")), float(minutes) if minutes else None, tell)

    def rng(self, *more: object) -> random.Random:
        """Return a random generator that depends only on the seed and on `more`."""
        return random.Random(repr((self.seed, *more)))  # noqa: S311 - repeatable, not secret

    def times(self, short: int, long: int) -> int:
        """Return a number of repeats: `long` in a run of ten minutes or more, less in a shorter run."""
        return short if self.minutes is None else max(short, round(long * min(1.0, self.minutes / 10)))

    def seconds(self, short: float, share: float) -> float:
        """Return a duration: a share of the minutes of a long run."""
        return short if self.minutes is None else max(short, share * self.minutes * 60)

    def count(self, **figures: int) -> None:
        """Add to the counts of what was done, and report them."""
        self.figures.update(figures)
        self.tell(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in self.figures.items()))
