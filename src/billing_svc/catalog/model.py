"""A whole catalog, typed; its parts are in `parts.py`. Frozen: a sold version never changes.

The constructor refuses a catalog that contradicts itself or that Stripe cannot charge.
"""

import functools
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from billing_svc.catalog import consistency, notation, parts, references
from billing_svc.catalog.notation import Duration, Name, Problem
from billing_svc.platform import money

FreePeriod = Literal["calendar_month", "signup_anniversary"]
WhilePaused = Literal["keep", "default_plan"]
Percent = Annotated[int, Field(ge=1, le=1000)]
NO_PLAN = "none"
METERS_MAX = 50
PLANS_MAX = 50
ALERTS_MAX = 10


class Catalog(parts.Part):
    """Everything that is counted and sold."""

    name: Name = Field(alias="catalog")
    """The catalog's name; Stripe's lookup keys begin with it, so it never changes."""
    currency: str = Field(json_schema_extra={"enum": [*sorted(money.EXPONENTS)]})
    """ISO 4217, in lower case."""
    default_plan: Name
    """The plan of an account without a subscription; none: an empty plan."""
    free_period: FreePeriod = "calendar_month"
    """The quota period of an account without a subscription."""
    alert_percents: tuple[Percent, ...] = Field(default=(80, 100, 120), max_length=ALERTS_MAX)
    """The percentages of the included quantity at which an alert is raised, in rising order."""
    grace_period: Duration = timedelta(hours=24)
    """How long usage is allowed after it first exceeds a limit with beyond: grace. Written as 90s, 30m, 24h or 7d."""
    while_collection_paused: WhilePaused = "keep"
    """The plan while the collection of a subscription's invoices is paused. keep: its own plan, without overage."""
    while_paused: WhilePaused = "default_plan"
    """The plan while a subscription itself is paused at Stripe. keep: its own plan, without overage."""
    meters: Mapping[Name, parts.Meter] = Field(min_length=1, max_length=METERS_MAX)
    plans: Mapping[Name, parts.Plan] = Field(min_length=1, max_length=PLANS_MAX)
    """In the order in which a pricing page shows them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, plan in self.plans.items():
            plan._catalog, plan._key = self.name, key  # noqa: SLF001 - a plan learns its key from the catalog alone
        notation.refuse("Catalog", list(self._problems()))
        return self

    def _problems(self) -> Iterator[Problem]:
        yield from references.problems(self.model_dump(by_alias=True))
        yield from consistency.problems(self.plans, self.default_plan, self.currency, self.alert_percents)

    @functools.cached_property
    def limits_rates(self) -> bool:
        """Whether any plan has a rate limit."""
        return any(plan.rate_limit_for(pay_as_you_go=True) is not None for plan in self.plans.values())

    @functools.cached_property
    def default(self) -> parts.Plan:
        """The plan of an account without a subscription; an empty plan if the catalog names none."""
        return self.plans.get(self.default_plan) or self._nothing

    @functools.cached_property
    def _nothing(self) -> parts.Plan:
        plan = parts.Plan(name="No plan", sold=False)
        plan._catalog, plan._key = self.name, NO_PLAN  # noqa: SLF001 - as above
        return plan

    def plan(self, key: str) -> parts.Plan:
        """Return a plan by its key; raises KeyError if there is no such plan."""
        return self.default if key == self.default_plan else self.plans[key]

    def meter_of_operation(self, operation: str) -> tuple[str, int]:
        """Return an operation's meter and its cost in that meter's units; raises KeyError if unknown."""
        return self._operations[operation]

    @functools.cached_property
    def _operations(self) -> Mapping[str, tuple[str, int]]:
        return {
            operation: (key, cost) for key, meter in self.meters.items() for operation, cost in meter.operations.items()
        }

    def minor_units(self, price: parts.Price) -> int:
        """Return the amount of a price as Stripe's `unit_amount`."""
        return money.whole_minor_units(price.amount, self.currency)
