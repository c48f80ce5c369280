"""When an account's months begin. Pure: no I/O, `now` is an argument."""

from datetime import datetime


def signup(now: datetime) -> datetime:
    """Return the signup instant of an account that is first seen `now`, in whole seconds as Stripe counts.

    With a fraction of a second, months since signup would end up to a second after Stripe's months. A subscription
    that begins in the second of the signup would then get a first period of a second instead of a month.
    """
    return now.replace(microsecond=0)
