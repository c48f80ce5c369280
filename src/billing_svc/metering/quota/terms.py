"""Terms: which plan holds for an account at an instant, and for which period.

Derived afresh for every decision from the account's subscriptions and the clock; nothing is remembered, so a quota
resets on time even when Stripe's renewal event is late.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

from billing_svc.catalog import model, parts
from billing_svc.metering.quota import periods
from billing_svc.platform import values
from billing_svc.platform.accounts import rules as accounts_rules


@values.value
class PlanSubscription:
    """A plan subscription, as far as a decision needs it; in force in [effective_from, effective_until).

    A type of its own beside `SubscriptionRecord`: every decision reads and makes one, so it has only the eight columns
    that a decision needs, in the order in which the statement in `store.py` names them.
    """

    subscription_id: str
    status: str
    plan: str
    catalog_version: int
    quantity: int
    anchor: datetime
    effective_from: datetime
    effective_until: datetime | None

    def covers(self, at: datetime) -> bool:
        """Say whether it gives the plan at `at`."""
        return self.effective_from <= at and (self.effective_until is None or at < self.effective_until)


@values.value
class AccountState:
    """What an account is, before the clock is asked. `created_at` is None for an account that was never written."""

    newest_catalog: int
    created_at: datetime | None
    # The subscription under which pay-as-you-go was switched on; None: off.
    pay_as_you_go_under: str | None
    # Plan subscriptions alone.
    subscriptions: tuple[PlanSubscription, ...]
    # The metered-only subscription that `pay_as_you_go_under` names, if it names one. It never sets a period.
    metered_only: PlanSubscription | None = None

    def catalog_versions(self) -> Iterable[int]:
        """Return the numbers of all catalogs that its terms may come from."""
        return {self.newest_catalog, *(subscription.catalog_version for subscription in self.subscriptions)}


@values.value
class Override:
    """What an account has of one meter in place of what its plan includes; `included` None: unlimited."""

    included: int | None
    expires_at: datetime | None
    note: str
    set_by: str
    set_at: datetime

    def holds(self, at: datetime) -> bool:
        """Say whether it is in force at `at`."""
        return self.expires_at is None or at < self.expires_at


@values.value
class Allowance:
    """How much of one meter there is, and what happens beyond. Without a limit the meter is not in the plan."""

    limit: parts.Limit | None
    # None: unlimited.
    included: int | None
    overridden: bool = False
    # The most that may be charged in a period; None without a cap.
    charged_units_max: int | None = None

    @property
    def charges(self) -> bool:
        """Say whether units beyond the included quantity are billable."""
        return self.limit is not None and self.limit.beyond == "charge"


# An override of a meter outside the plan gives just its quantity.
_NOTHING_BEYOND = parts.Limit(included=0, beyond="deny")


@values.value
class EffectiveTerms:
    """What holds for an account at one instant."""

    catalog_version: int
    catalog: model.Catalog
    plan: parts.Plan
    subscription: PlanSubscription | None
    quantity: int
    pay_as_you_go: bool
    period: periods.Period
    # The metered-only subscription that carries the default plan's pay-as-you-go while that is in force.
    metered_only: PlanSubscription | None = None

    @property
    def billed_under(self) -> str | None:
        """Return the id of the subscription whose invoices carry what is charged; None if nothing can be charged."""
        billing = self.subscription or self.metered_only
        return None if billing is None else billing.subscription_id

    @property
    def past_due(self) -> bool:
        """Say whether a payment is overdue; the plan stays in force meanwhile."""
        return self.subscription is not None and self.subscription.status == "past_due"

    def allowance(self, meter: str, override: Override | None, at: datetime) -> Allowance:
        """Return what there is of a meter at `at`. Overrides are for the whole account, not for each seat."""
        limit = self.plan.limit(meter, pay_as_you_go=self.pay_as_you_go)
        if override is not None and override.holds(at):
            return Allowance(limit or _NOTHING_BEYOND, override.included, True, self._charged_units_max(limit))  # noqa: FBT003
        if limit is None:
            return Allowance(None, 0)
        return Allowance(limit, limit.included_for(self.quantity), False, self._charged_units_max(limit))  # noqa: FBT003

    def _charged_units_max(self, limit: parts.Limit | None) -> int | None:
        """Return how many units the overlay's cap on the overage leaves room for."""
        overlay = self.plan.pay_as_you_go
        if limit is None or overlay is None or overlay.overage_cap is None or limit not in overlay.limits.values():
            return None
        return int(Decimal(overlay.overage_cap) // limit.unit_price_exact) if limit.beyond == "charge" else None


def at_instant(standing: AccountState, catalogs: Mapping[int, model.Catalog], at: datetime) -> EffectiveTerms:
    """Return the terms of an account at `at`.

    With several subscriptions in force the latest one decides; without one, the default plan of the newest catalog
    does. Going from one to another, or to none, ends the old period at that instant.
    """
    subscription = _deciding(standing, at)
    version = standing.newest_catalog if subscription is None else subscription.catalog_version
    catalog = catalogs[version]
    plan = catalog.default if subscription is None else catalog.plan(subscription.plan)
    carrier = _pay_as_you_go(standing, plan, subscription, at)
    return EffectiveTerms(
        version,
        catalog,
        plan,
        subscription,
        1 if subscription is None else subscription.quantity,
        carrier is not None,
        _month(standing, catalog, plan, subscription, at).clipped(*_tenure(standing, subscription, at)),
        None if carrier is subscription else carrier,
    )


def _pay_as_you_go(
    standing: AccountState, plan: parts.Plan, subscription: PlanSubscription | None, at: datetime
) -> PlanSubscription | None:
    """Return the subscription that carries pay-as-you-go at `at`; None while it is off.

    On a bought plan that is the plan's own one, on the default plan a metered-only one: a plan that is bought or that
    ends leaves it off by the clock alone, however late its event is.
    """
    if plan.pay_as_you_go is None:
        return None
    if subscription is not None:
        return subscription if subscription.subscription_id == standing.pay_as_you_go_under else None
    carrier = standing.metered_only
    # Its prices are those of the plan that was the default one when it was made.
    return carrier if carrier is not None and carrier.plan == plan.key and carrier.covers(at) else None


def _deciding(standing: AccountState, at: datetime) -> PlanSubscription | None:
    if len(standing.subscriptions) == 1:  # as nearly always
        only = standing.subscriptions[0]
        return only if only.covers(at) else None
    covering = [subscription for subscription in standing.subscriptions if subscription.covers(at)]
    if len(covering) > 1:
        return max(covering, key=lambda one: (one.effective_from, one.subscription_id))
    return covering[0] if covering else None


def _tenure(
    standing: AccountState, deciding_now: PlanSubscription | None, at: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return since when and until when the same subscription decides as at `at`; None: as far as one knows."""
    if not standing.subscriptions:
        return None, None
    if deciding_now is not None and len(standing.subscriptions) == 1:  # as nearly always
        return deciding_now.effective_from, deciding_now.effective_until
    bounds = {one.effective_from for one in standing.subscriptions}
    bounds |= {one.effective_until for one in standing.subscriptions if one.effective_until is not None}
    before, changes = None, []
    for bound in sorted(bounds):
        deciding = _deciding(standing, bound)
        if deciding is not before:
            changes.append(bound)
        before = deciding
    return (
        max((change for change in changes if change <= at), default=None),
        min((change for change in changes if change > at), default=None),
    )


def _month(
    standing: AccountState,
    catalog: model.Catalog,
    plan: parts.Plan,
    subscription: PlanSubscription | None,
    at: datetime,
) -> periods.Period:
    if subscription is not None:
        if plan.quota_period == "calendar_month":
            return periods.calendar_month(at)
        return periods.anchored_month(subscription.anchor, at)
    if catalog.free_period == "calendar_month":
        return periods.calendar_month(at)
    # What an account brings along from before its beginning counts in its first period.
    signup = standing.created_at or accounts_rules.signup(at)
    return periods.anchored_month(signup, max(at, signup))
