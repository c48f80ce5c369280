"""Back-off of retries. Pure: `now` and the random part are arguments."""

from datetime import datetime, timedelta

# Attempts have no bound, a timedelta has; every maximum is reached long before.
_DOUBLINGS_MAX = 16


def retry_at(attempts: int, now: datetime, first: timedelta, most: timedelta, jitter: float = 0.0) -> datetime:
    """Return when to try again: after `first`, doubled for each attempt, at most `most`, less a random part up to half.

    `jitter` lies in [0, 1); 0 takes nothing away.
    """
    pause = min(first * (1 << min(attempts, _DOUBLINGS_MAX)), most)
    return now + pause - pause * jitter // 2
