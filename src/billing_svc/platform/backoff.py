"""Back-off of retries. Pure: `now` and the random part are arguments."""

from datetime import datetime, timedelta

# The number of attempts has no bound, but a timedelta does. Every `most` is reached in fewer doublings than this.
_DOUBLINGS_MAX = 16


def retry_at(attempts: int, now: datetime, first: timedelta, most: timedelta, jitter: float = 0.0) -> datetime:
    """Return when to try again: the pause is `first`, doubled for each attempt, at most `most`.

    `jitter` in [0, 1) shortens the pause by up to half; 0 leaves it as it is.
    """
    pause = min(first * (1 << min(attempts, _DOUBLINGS_MAX)), most)
    return now + pause - pause * jitter // 2
