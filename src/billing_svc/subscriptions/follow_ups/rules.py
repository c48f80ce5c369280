"""Rules for the state that a subscription should have at Stripe. Pure: no I/O, `now` is an argument."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_svc.platform import backoff

RETRY_FIRST = timedelta(seconds=2)
RETRY_MOST = timedelta(minutes=5)
# A write for an earlier follow-up began before the present follow-up was stored; after this time it cannot arrive any
# more.
LANDED_AFTER = timedelta(seconds=60)


class WantedState(enum.Enum):
    """The state that a subscription should have."""

    # Active, with no scheduled end.
    KEPT = "kept"
    # Scheduled to end with its period.
    ENDING = "ending"
    # Ended, with its usage invoiced.
    ENDED = "ended"
    # Ended, with the unused part of the payment credited to the customer.
    CREDITED = "credited"
    # As it is: a plan subscription that nobody asked to end.
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class FollowUpState:
    """The facts that decide about a metered-only subscription, or about a plan subscription."""

    superfluous: bool
    # Whether it is a plan subscription. It may have been metered-only when the follow-up was stored.
    is_plan: bool
    # Whether a plan subscription gives the account its plan.
    plan_in_force: bool
    # Whether pay-as-you-go is switched on under this subscription.
    switched_on: bool


def wanted(state: FollowUpState) -> WantedState:
    """Return the wanted state. A plan ends a metered-only subscription now; switching off, at its period's end."""
    if state.superfluous:
        return WantedState.CREDITED
    if state.is_plan:
        return WantedState.LEFT
    if state.plan_in_force:
        return WantedState.ENDED
    return WantedState.KEPT if state.switched_on else WantedState.ENDING


def is_so(want: WantedState, *, is_over: bool, will_end: bool) -> bool:
    """Say whether a subscription has the wanted state; True if it is over, because then nothing can be changed."""
    if is_over or want is WantedState.LEFT:
        return True
    if want is WantedState.KEPT:
        return not will_end
    return want is WantedState.ENDING and will_end


def retry_at(attempts: int, now: datetime) -> datetime:
    """Return when to try again after `attempts` failures: two seconds, doubling, at most five minutes."""
    return backoff.retry_at(attempts, now, RETRY_FIRST, RETRY_MOST)
