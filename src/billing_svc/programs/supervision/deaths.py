"""How often a process may die before it is given up."""

import collections
import time
from collections.abc import Sequence

from billing_svc.programs.commands import common

# What dies this often so soon dies of something that starting it again does not mend.
DEATHS_MAX = 5
DEATHS_WITHIN_SECONDS = 30.0
# The pause before it is started again; it doubles, so the last one is 1.6 s.
_PAUSE_SECONDS = 0.2


class Deaths:
    """When a process died lately."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._times: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)

    def add(self, how: str, tail: Sequence[str]) -> float:
        """Note a death; return the seconds to wait before starting again. Raises Refusal when there were too many."""
        now = time.monotonic()
        self._times.append(now)
        lately = sum(now - one < DEATHS_WITHIN_SECONDS for one in self._times)
        if lately == DEATHS_MAX:
            raise common.Refusal(
                f"{self._name} {how}, {DEATHS_MAX} times within {DEATHS_WITHIN_SECONDS:.0f} s; its last lines:\n"
                + "\n".join(f"  {line}" for line in tail)
            )
        return _PAUSE_SECONDS * 2.0 ** (lately - 1)
