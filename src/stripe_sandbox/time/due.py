"""Changes of objects that are due at a certain time. `timeline` has the list of sources and makes the changes."""

import dataclasses
from collections.abc import Callable, Iterable

from stripe_sandbox import state
from stripe_sandbox.api import context


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """A future change of an object, at a unix time.

    `act` gets the object's id. It runs in a transaction of its own, in which the sandbox's time is exactly `at`. After
    it has run, the source must not return the change again.
    """

    at: int
    what: str
    subject: str
    act: Callable[[context.Context, str], object]


Source = Callable[[state.Work], Iterable[Due]]
"""Returns all future changes of some kind, in any order."""
