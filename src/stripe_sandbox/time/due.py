"""What happens by itself when its time has come. `timeline` lists the sources and brings things about."""

import dataclasses
from collections.abc import Callable, Iterable

from stripe_sandbox import state
from stripe_sandbox.api import context


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """Something that will happen to an object at a unix time.

    `act` gets the object's id and runs in a transaction of its own, in which it is exactly `at`. Afterwards the source
    must not give it again.
    """

    at: int
    what: str
    subject: str
    act: Callable[[context.Context, str], object]


Source = Callable[[state.Work], Iterable[Due]]
"""Gives everything of a kind that will happen, however far ahead, in any order."""
