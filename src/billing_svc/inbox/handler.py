"""The interface of the handlers of Stripe's events."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import rules
from billing_svc.platform.audit import store as audit_store

# Applies events in a transaction, at an instant. Returns the account, or "" if the events concern no single account.
# May run several times.
Apply: TypeAlias = Callable[[AsyncConnection, datetime], Awaitable[str]]


class Handler(Protocol):
    """Updates the stored state of a kind of Stripe object."""

    async def prepare(self, events: Sequence[rules.Event]) -> Apply:
        """Fetch the object once for all its events, and return the function that applies them.

        Both raise NotOurs if the object belongs to no account of ours, CannotApply or StripeRefused if a person has to
        repair the cause, and Unavailable or LostRace if a later attempt can succeed.
        """


def origin(events: Sequence[rules.Event]) -> audit_store.Origin:
    """Return the origin for the audit log: the last event."""
    return audit_store.Origin(f"stripe:{events[-1].event_id}")
