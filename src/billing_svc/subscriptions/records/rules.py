"""When a subscription gives its plan. Pure: no I/O, `now` is an argument.

Which of an account's subscriptions gives the plan that is in force says `metering/quota/terms.py`.
"""

from dataclasses import dataclass
from datetime import datetime

from billing_svc.catalog import model
from billing_svc.stripe import subscriptions as stripe_subscriptions

# Nothing is collected: the default plan applies until the subscription gives its plan again. The catalog can say that
# a paused subscription keeps its plan.
SUSPENDED = frozenset({"unpaid", stripe_subscriptions.PAUSED})
# Never gave its plan.
STILLBORN = frozenset({"incomplete", "incomplete_expired"})


@dataclass(frozen=True, slots=True)
class Interval:
    """The half-open interval in which a subscription gives its plan; equal bounds mean never."""

    start: datetime
    end: datetime | None


@dataclass(frozen=True, slots=True)
class PausePolicy:
    """Whether a subscription keeps its plan while the collection of its invoices, or itself, is paused."""

    keeps_while_collection_paused: bool = True
    keeps_while_paused: bool = False

    @classmethod
    def of(cls, catalog: model.Catalog) -> "PausePolicy":
        """Return a catalog's policy."""
        return cls(catalog.while_collection_paused == "keep", catalog.while_paused == "keep")

    def suspends(self, subscription: stripe_subscriptions.Standing) -> bool:
        """Say whether the default plan applies although the subscription has not ended."""
        if subscription.is_paused:
            return not self.keeps_while_paused
        if subscription.status in SUSPENDED:
            return True
        is_giving = subscription.status in stripe_subscriptions.GIVING
        return is_giving and subscription.collection_pause is not None and not self.keeps_while_collection_paused


DEFAULT_POLICY = PausePolicy()


def overage_denied_from(
    subscription: stripe_subscriptions.Standing, previous: datetime | None, now: datetime
) -> datetime | None:
    """Return since when no invoice will charge overage, because of a pause; None if it is charged.

    A pause of the collection begins when this service first sees it: Stripe does not say when it began.
    """
    if subscription.is_paused:
        return previous or subscription.pause_began_at or now
    return previous or now if subscription.collection_pause is not None and not subscription.is_over else None


def interval_in_force(
    subscription: stripe_subscriptions.Standing,
    previous: Interval | None,
    period_end: datetime,
    now: datetime,
    policy: PausePolicy = DEFAULT_POLICY,
) -> Interval:
    """Return when a subscription gives its plan; `previous` is what was stored before.

    It ends when Stripe says that it ended or will end, so that the plan changes on time even if the event is late. A
    suspension begins when this service first sees it: Stripe does not say when it began.
    """
    if isinstance(subscription, stripe_subscriptions.StripeSubscription):
        start = subscription.start_date
    else:
        start = now if previous is None else previous.start
    end: datetime | None
    if policy.suspends(subscription):
        end = previous.end if previous is not None and previous.end is not None and previous.end <= now else now
    elif subscription.status in stripe_subscriptions.GIVING or subscription.is_paused:
        planned = period_end if subscription.cancel_at_period_end else None
        end = min(
            (at for at in (subscription.ended_at, subscription.cancel_at, planned) if at is not None), default=None
        )
    elif subscription.status == "canceled":
        ended = subscription.ended_at or subscription.canceled_at or now
        end = ended if previous is None or previous.end is None else min(ended, previous.end)
    elif subscription.status in STILLBORN:
        end = start
    else:  # an unknown status keeps the previous interval
        end = start if previous is None else previous.end
    return Interval(start, end if end is None else max(start, end))
