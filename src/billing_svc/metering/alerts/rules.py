"""Which thresholds usage has crossed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms


@dataclass(frozen=True, slots=True)
class Alert:
    """A threshold that was crossed, in percent of what was included then."""

    threshold_percent: int
    included: int
    used: int

    @property
    def severity(self) -> str:
        """Return `warning` below 100 %, `critical` at it, `exceeded` above."""
        if self.threshold_percent == 100:  # noqa: PLR2004 - all of it
            return "critical"
        return "warning" if self.threshold_percent < 100 else "exceeded"  # noqa: PLR2004 - as above


@dataclass(frozen=True, slots=True)
class AlertFilter:
    """Which alerts of an account a list shows; without a meter, those of all meters."""

    meter: str
    with_acknowledged: bool


def alerts_to_raise(
    percents: Sequence[int],
    allowance: terms.Allowance,
    before: quota_rules.Counter,
    after: quota_rules.Counter,
    *,
    is_new_allowance: bool,
) -> list[Alert]:
    """Return the thresholds crossed from `before` to `after`; with a new allowance, all that `after` has reached.

    An unlimited quantity and an included quantity of 0 have no thresholds. A threshold that is stored already is not
    stored again, so returning it twice is harmless.
    """
    included, used = allowance.included, after.shown_used
    if not included or not percents or used * 100 < percents[0] * included:  # they rise; nearly always it is below all
        return []
    was = -1 if is_new_allowance else before.shown_used * 100
    return [Alert(percent, included, used) for percent in percents if was < percent * included <= used * 100]
