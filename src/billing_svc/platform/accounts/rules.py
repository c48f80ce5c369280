"""When an account's months begin. Pure: no I/O, `now` is an argument."""

from datetime import datetime


def signup(now: datetime) -> datetime:
    """Return the beginning of an account that is first seen `now`, in whole seconds as Stripe counts.

    With a fraction, months since signup would end within the second after Stripe's own, and a subscription that begins
    in the second of the signup cannot have a first period of that length: it would get one of a second.
    """
    return now.replace(microsecond=0)
