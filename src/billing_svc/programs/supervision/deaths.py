"""Decides how long to wait before a restart, and when a process has died too often."""

import collections
import time
from collections.abc import Sequence

from billing_svc.programs.commands import common

# A process that dies this often within this time is given up: another restart would not help.
DEATHS_MAX = 5
DEATHS_WITHIN_SECONDS = 30.0
# The pause before a restart; it doubles up to 1.6 s.
_PAUSE_SECONDS = 0.2


class Deaths:
    """The instants of a process's last deaths."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._times: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)

    def add(self, how: str, tail: Sequence[str]) -> float:
        """Record a death; return the seconds to wait before a restart. Raises Refusal after too many deaths."""
        now = time.monotonic()
        self._times.append(now)
        lately = sum(now - one < DEATHS_WITHIN_SECONDS for one in self._times)
        if lately == DEATHS_MAX:
            raise common.Refusal(
                f"{self._name} {how}, {DEATHS_MAX} times within {DEATHS_WITHIN_SECONDS:.0f} s; its last lines:\n"
                + "\n".join(f"  {line}" for line in tail)
            )
        return _PAUSE_SECONDS * 2.0 ** (lately - 1)
