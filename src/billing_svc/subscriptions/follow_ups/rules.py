"""What is to become of a subscription at Stripe. Pure: no I/O, `now` is an argument."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_svc.platform import backoff

RETRY_FIRST = timedelta(seconds=2)
RETRY_MOST = timedelta(minutes=5)
# A write for an earlier duty began before the present one was noted; by then it has reached Stripe or never will.
LANDED_AFTER = timedelta(seconds=60)


class WantedState(enum.Enum):
    """How a subscription should stand."""

    # It goes on, and no end is scheduled.
    KEPT = "kept"
    # It ends with its period.
    ENDING = "ending"
    # It is over, and what was used is invoiced.
    ENDED = "ended"
    # It is over, and what was paid is credited to the customer.
    CREDITED = "credited"


@dataclass(frozen=True, slots=True)
class FollowUpState:
    """What decides about a metered-only subscription, or about a plan subscription that is one too many."""

    superfluous: bool
    # A plan subscription gives the account its plan.
    plan_in_force: bool
    # Pay-as-you-go is switched on under this one.
    switched_on: bool


def wanted(state: FollowUpState) -> WantedState:
    """Return how it should stand. Pay-as-you-go ends when a plan is bought, and with its period when switched off."""
    if state.superfluous:
        return WantedState.CREDITED
    if state.plan_in_force:
        return WantedState.ENDED
    return WantedState.KEPT if state.switched_on else WantedState.ENDING


def is_so(want: WantedState, *, is_over: bool, will_end: bool) -> bool:
    """Say whether a subscription stands as wanted; one that is over stays so, whatever is wanted."""
    if is_over:
        return True
    if want is WantedState.KEPT:
        return not will_end
    return want is WantedState.ENDING and will_end


def retry_at(attempts: int, now: datetime) -> datetime:
    """Return when to try again after `attempts` failures: two seconds, doubling, at most five minutes."""
    return backoff.retry_at(attempts, now, RETRY_FIRST, RETRY_MOST)
