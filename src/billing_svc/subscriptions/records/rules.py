"""When a subscription gives its plan. Pure: no I/O, `now` is an argument.

Which of an account's subscriptions gives the plan that is in force says `metering/quota/terms.py`.
"""

from dataclasses import dataclass
from datetime import datetime

from billing_svc.stripe import subscriptions as stripe_subscriptions

# Suspended: the default plan applies until the subscription gives its plan again.
SUSPENDED = frozenset({"unpaid", "paused"})
# Never gave its plan.
STILLBORN = frozenset({"incomplete", "incomplete_expired"})


@dataclass(frozen=True, slots=True)
class Interval:
    """The half-open interval in which a subscription gives its plan; equal bounds mean never."""

    start: datetime
    end: datetime | None


def interval_in_force(
    subscription: stripe_subscriptions.StripeSubscription,
    previous: Interval | None,
    period_end: datetime,
    now: datetime,
) -> Interval:
    """Return when a subscription gives its plan; `previous` is what was stored before.

    It ends when Stripe says that it ended or will end, so that the plan changes on time even if the event is late. A
    suspension begins when this service first sees it: Stripe does not say when it began.
    """
    start = subscription.start_date
    end: datetime | None
    if subscription.status in stripe_subscriptions.GIVING:
        planned = period_end if subscription.cancel_at_period_end else None
        end = min(
            (at for at in (subscription.ended_at, subscription.cancel_at, planned) if at is not None), default=None
        )
    elif subscription.status == "canceled":
        ended = subscription.ended_at or subscription.canceled_at or now
        end = ended if previous is None or previous.end is None else min(ended, previous.end)
    elif subscription.status in SUSPENDED:
        end = previous.end if previous is not None and previous.end is not None and previous.end <= now else now
    elif subscription.status in STILLBORN:
        end = start
    else:  # an unknown status keeps the previous interval
        end = start if previous is None else previous.end
    return Interval(start, end if end is None else max(start, end))
