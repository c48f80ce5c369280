"""What every handler does."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import rules
from billing_svc.platform.audit import store as audit_store

# Applies in a transaction, at an instant; returns the account, or "" if it is about none. May run several times.
Apply: TypeAlias = Callable[[AsyncConnection, datetime], Awaitable[str]]


class Handler(Protocol):
    """Brings one kind of object up to date."""

    async def prepare(self, events: Sequence[rules.Event]) -> Apply:
        """Fetch, once for all of an object's events, and return what is to be done.

        Raises NotOurs if it is none of our business, CannotApply or StripeRefused if only somebody's repair helps, and
        Unavailable or LostRace if it is worth another try by itself. So does what is returned.
        """


def origin(events: Sequence[rules.Event]) -> audit_store.Origin:
    """Return who changes something, for the audit log: the last of the events."""
    return audit_store.Origin(f"stripe:{events[-1].event_id}")
