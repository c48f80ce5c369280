"""The lines of a bill. Pure; amounts are exact Decimals in major units, and each line is rounded once."""

from dataclasses import dataclass
from decimal import Decimal

from billing_svc.catalog import model, parts
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms
from billing_svc.pricing import rules as pricing_rules

# Usage beyond limits of these kinds is denied: at once, or after the grace.
_DENYING = frozenset({"deny", "grace"})


@dataclass(frozen=True, slots=True)
class MeterQuantity:
    """Units of a meter (a gauge's peak); `counter` is set for an account's usage on its own terms."""

    units: int
    counter: quota_rules.Counter | None = None


@dataclass(frozen=True, slots=True)
class MeterLine:
    """The cost of a meter's usage; `included` None means unlimited. `charging` is the limit that has the price."""

    meter: str
    definition: parts.Meter
    quantity: int
    included: int | None
    in_plan: bool
    billable: int
    charging: parts.Limit | None
    amount: Decimal
    over_limit: bool


@dataclass(frozen=True, slots=True)
class Bill:
    """Lines under some terms; `base` is None for a plan without a price. `of_account`: the usage is an account's."""

    under: terms.EffectiveTerms
    catalog: model.Catalog
    base: pricing_rules.BaseLine | None
    lines: tuple[MeterLine, ...]
    of_account: bool

    @property
    def total(self) -> Decimal:
        """Return the sum of the rounded lines."""
        amounts = [line.amount for line in self.lines]
        return sum(amounts, start=Decimal(0) if self.base is None else self.base.amount)


def meter_line(
    meter: str,
    definition: parts.Meter,
    under: terms.EffectiveTerms,
    allowance: terms.Allowance,
    quantity: MeterQuantity,
    currency: str,
) -> MeterLine:
    """Return a meter's line, from the counter's billable units or from what the quantity would make billable."""
    limit, included, counter = allowance.limit, allowance.included, quantity.counter
    beyond = 0 if included is None else max(0, quantity.units - included)
    if counter is not None:
        billable = counter.billable
        # Charged units do not use up the included units; a gauge counts by its peak.
        passed = 0 if included is None else max(0, quantity.units - billable - included)
    else:
        billable = beyond if allowance.charges else 0
        if allowance.charged_units_max is not None:
            billable = min(billable, allowance.charged_units_max)
        passed = beyond - billable
    charging = pricing_rules.charging_limit(under.plan, meter, billable, pay_as_you_go=under.pay_as_you_go)
    return MeterLine(
        meter=meter,
        definition=definition,
        quantity=quantity.units,
        included=included,
        in_plan=limit is not None,
        billable=billable,
        charging=charging,
        amount=pricing_rules.rounded(pricing_rules.overage(charging, billable), currency),
        over_limit=passed > 0
        and (limit is None or limit.beyond in _DENYING or allowance.charged_units_max is not None),
    )
