"""Terms: which plan is in force for an account at an instant, and for which period.

They are derived for every decision from the account's subscriptions and the clock, so a quota resets on time even if
Stripe's renewal event is late.
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
    """A stretch of a plan subscription, as far as a decision needs it; in force in [since, effective_until).

    A subscription whose periods were never moved is a single stretch, from `effective_from`. Each move ends a stretch
    (ADR 0019).

    Not a `SubscriptionRecord`: every decision reads this and makes an object of it, so it has only the columns
    that a decision needs, in the order in which the statement in `store.py` names them.
    """

    subscription_id: str
    status: str
    plan: str
    catalog_version: int
    quantity: int
    anchor: datetime
    # When the subscription began.
    effective_from: datetime
    since: datetime
    effective_until: datetime | None
    # Since when no invoice charges overage, because of a pause at Stripe; None: it is charged.
    overage_denied_from: datetime | None = None
    # The event names of the plan's meters that no item of it bills, separated by spaces; nearly always empty.
    missing_meters: str = ""

    def covers(self, at: datetime) -> bool:
        """Say whether it gives the plan at `at`."""
        return self.since <= at and (self.effective_until is None or at < self.effective_until)


@values.value
class AccountState:
    """The stored state of an account, from which its terms follow. `created_at` is None until the account is stored."""

    newest_catalog: int
    created_at: datetime | None
    # The subscription under which pay-as-you-go was switched on; None: off.
    pay_as_you_go_under: str | None
    # Only plan subscriptions; their past stretches too.
    subscriptions: tuple[PlanSubscription, ...]
    # The metered-only subscription that `pay_as_you_go_under` names, if any. It never sets a period.
    metered_only: PlanSubscription | None = None

    def catalog_versions(self) -> Iterable[int]:
        """Return the versions of all catalogs that the terms may come from."""
        return {self.newest_catalog, *(subscription.catalog_version for subscription in self.subscriptions)}


@values.value
class Override:
    """The included quantity of a meter that an account has instead of its plan's; `included` None: unlimited."""

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
    """The included quantity of a meter, and the limit beyond it; without a limit the meter is not in the plan."""

    limit: parts.Limit | None
    # None: unlimited.
    included: int | None
    overridden: bool = False
    # The most units that may be charged in a period; None without a cap.
    charged_units_max: int | None = None
    # Nothing at Stripe can charge units beyond the included quantity, so they are denied.
    is_uncharged: bool = False

    @property
    def charges(self) -> bool:
        """Say whether units beyond the included quantity are billable."""
        return self.limit is not None and self.limit.beyond == "charge"


# An override of a meter outside the plan gives its quantity, and nothing beyond it.
_NOTHING_BEYOND = parts.Limit(included=0, beyond="deny")


def kept_allowance(limit: parts.Limit | None, included: int | None, *, overridden: bool) -> Allowance:
    """Return an allowance as it was stored, with the limit of the plan that it was stored with."""
    if limit is None and not overridden:
        return Allowance(None, included=0)
    return Allowance(limit or _NOTHING_BEYOND, included, overridden)


@values.value
class EffectiveTerms:
    """The terms that are in force for an account at an instant."""

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
        """Return the id of the subscription whose invoices have the charges; None if nothing can be charged."""
        billing = self.subscription or self.metered_only
        return None if billing is None else billing.subscription_id

    @property
    def past_due(self) -> bool:
        """Say whether a payment is overdue; the plan stays in force meanwhile."""
        return self.subscription is not None and self.subscription.status == "past_due"

    def allowance(
        self, meter: str, override: Override | None, at: datetime, used_at: datetime | None = None
    ) -> Allowance:
        """Return the allowance of a meter at `at`. An override is for the whole account, not for each seat.

        `used_at`: when the usage happened, if not at `at`. What was used before a pause at Stripe is charged.
        """
        limit = self.plan.limit(meter, pay_as_you_go=self.pay_as_you_go)
        if limit is not None and self._is_overage_denied(used_at or at):
            limit = limit.without_overage
        if override is not None and override.holds(at):
            return Allowance(
                limit or _NOTHING_BEYOND,
                included=override.included,
                overridden=True,
                charged_units_max=self._charged_units_max(limit),
                is_uncharged=self._is_uncharged(meter),
            )
        if limit is None:
            return Allowance(None, included=0)
        return Allowance(
            limit,
            included=limit.included_for(self.quantity),
            charged_units_max=self._charged_units_max(limit),
            is_uncharged=self._is_uncharged(meter),
        )

    def _is_overage_denied(self, at: datetime) -> bool:
        billing = self.subscription or self.metered_only
        return billing is not None and billing.overage_denied_from is not None and at >= billing.overage_denied_from

    @property
    def missing_meters(self) -> str:
        """Return the event names that no item of the subscription bills, as `PlanSubscription` has them."""
        billing = self.subscription or self.metered_only
        return "" if billing is None else billing.missing_meters

    def _is_uncharged(self, meter: str) -> bool:
        """Say whether the subscription lacks the item that would charge a meter."""
        missing = self.missing_meters
        if not missing:  # as nearly always
            return False
        return any(price.meter == meter and price.lookup_key in missing.split() for price in self.plan.metered_prices)

    def _charged_units_max(self, limit: parts.Limit | None) -> int | None:
        """Return how many units the overlay's cap on the overage leaves room for."""
        overlay = self.plan.pay_as_you_go
        if limit is None or overlay is None or overlay.overage_cap is None or limit not in overlay.limits.values():
            return None
        return int(Decimal(overlay.overage_cap) // limit.unit_price_exact) if limit.beyond == "charge" else None


def effective_terms(account_state: AccountState, catalogs: Mapping[int, model.Catalog], at: datetime) -> EffectiveTerms:
    """Return the terms of an account at `at`.

    The latest of several subscriptions in force decides; without a subscription, the default plan of the newest
    catalog. When another subscription or stretch begins to decide, or none is left, the old period ends at that
    instant; but a stretch ends no calendar month.
    """
    subscription = _deciding(account_state, at)
    version = account_state.newest_catalog if subscription is None else subscription.catalog_version
    catalog = catalogs[version]
    plan = catalog.default if subscription is None else catalog.plan(subscription.plan)
    carrier = _pay_as_you_go(account_state, plan, subscription, at)
    return EffectiveTerms(
        catalog_version=version,
        catalog=catalog,
        plan=plan,
        subscription=subscription,
        quantity=1 if subscription is None else subscription.quantity,
        pay_as_you_go=carrier is not None,
        period=_month(account_state, catalog, plan, subscription, at).clipped(
            *_tenure(account_state, catalogs, subscription, at)
        ),
        metered_only=None if carrier is subscription else carrier,
    )


def _pay_as_you_go(
    account_state: AccountState, plan: parts.Plan, subscription: PlanSubscription | None, at: datetime
) -> PlanSubscription | None:
    """Return the subscription that carries pay-as-you-go at `at`; None while it is off.

    On a bought plan that is the plan's own subscription, on the default plan a metered-only subscription. So buying or
    ending a plan switches pay-as-you-go off at the right instant, however late Stripe's event is.
    """
    if plan.pay_as_you_go is None:
        return None
    if subscription is not None:
        return subscription if subscription.subscription_id == account_state.pay_as_you_go_under else None
    carrier = account_state.metered_only
    # The metered-only subscription has the prices of the plan that was the default when it was made.
    return carrier if carrier is not None and carrier.plan == plan.key and carrier.covers(at) else None


def _deciding(account_state: AccountState, at: datetime) -> PlanSubscription | None:
    if len(account_state.subscriptions) == 1:  # as nearly always
        only = account_state.subscriptions[0]
        return only if only.covers(at) else None
    covering = [subscription for subscription in account_state.subscriptions if subscription.covers(at)]
    if len(covering) > 1:
        return max(covering, key=lambda one: (one.effective_from, one.subscription_id))
    return covering[0] if covering else None


def _tenure(
    account_state: AccountState,
    catalogs: Mapping[int, model.Catalog],
    deciding_now: PlanSubscription | None,
    at: datetime,
) -> tuple[datetime | None, datetime | None]:
    """Return the start and end of the time in which the same subscription decides as at `at`; None: not known."""
    if not account_state.subscriptions:
        return None, None
    if deciding_now is not None and len(account_state.subscriptions) == 1:  # as nearly always
        return deciding_now.since, deciding_now.effective_until
    bounds = breaks(account_state, catalogs)
    return (
        max((bound for bound in bounds if bound <= at), default=None),
        min((bound for bound in bounds if bound > at), default=None),
    )


def breaks(account_state: AccountState, catalogs: Mapping[int, model.Catalog]) -> list[datetime]:
    """Return the instants, in order, at which a period ends because another stretch, or none, counts them then."""
    bounds = {one.since for one in account_state.subscriptions}
    bounds |= {one.effective_until for one in account_state.subscriptions if one.effective_until is not None}
    before, found = None, []
    for bound in sorted(bounds):
        counting = _counting(_deciding(account_state, bound), catalogs)
        if counting != before:
            found.append(bound)
        before = counting
    return found


def _counting(
    deciding: PlanSubscription | None, catalogs: Mapping[int, model.Catalog]
) -> tuple[str, datetime | None] | None:
    """Return what counts the periods: a stretch. Calendar months go on through all stretches of a subscription."""
    if deciding is None:
        return None
    plan = catalogs[deciding.catalog_version].plan(deciding.plan)
    return deciding.subscription_id, None if plan.quota_period == "calendar_month" else deciding.since


def _month(
    account_state: AccountState,
    catalog: model.Catalog,
    plan: parts.Plan,
    subscription: PlanSubscription | None,
    at: datetime,
) -> periods.Period:
    if subscription is not None:
        if plan.quota_period == "calendar_month":
            return periods.calendar_month(at)
        if at < subscription.anchor:
            # Before the anchor (in a trial), months are counted from the beginning, because the anchor may still move.
            return periods.anchored_month(subscription.since, at).clipped(None, subscription.anchor)
        return periods.anchored_month(subscription.anchor, at)
    if catalog.free_period == "calendar_month":
        return periods.calendar_month(at)
    # Usage from before the account's beginning counts in its first period.
    signup = account_state.created_at or accounts_rules.signup(at)
    return periods.anchored_month(signup, max(at, signup))
