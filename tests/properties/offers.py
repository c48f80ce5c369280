"""A catalog with every policy and small, often reached limits, as plain data for the service and the model."""

from dataclasses import dataclass
from typing import Any

CONSUMABLES = ("hard", "charged", "graced", "soft")
GAUGES = ("seats", "disk")
# An operation, and what it costs in `hard`.
BIG = 3
GRACE_HOURS = 24


@dataclass(frozen=True, slots=True)
class Offer:
    """What a plan includes of a meter (None: unlimited), and what happens beyond."""

    included: int | None
    beyond: str = ""
    per_seat: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """Return the offer in the catalog's format."""
        if self.included is None:
            return {"included": "unlimited"}
        price = {"unit_price": "0.5"} if self.beyond == "charge" else {}
        return {"included": self.included, "beyond": self.beyond, "per_seat": self.per_seat, **price}


PLANS = {
    "free": {
        "hard": Offer(6, "deny"),
        "charged": Offer(4, "deny"),
        "graced": Offer(6, "grace"),
        "seats": Offer(3, "deny"),
    },
    "pro": {
        "hard": Offer(12, "deny"),
        "charged": Offer(3, "charge"),
        "graced": Offer(None),
        "soft": Offer(5, "allow"),
        "seats": Offer(5, "deny"),
        "disk": Offer(3, "charge"),
    },
    "team": {
        "hard": Offer(4, "deny", per_seat=True),
        "charged": Offer(2, "charge", per_seat=True),
        "graced": Offer(4, "grace", per_seat=True),
        "soft": Offer(None),
        "seats": Offer(1, "deny", per_seat=True),
        "disk": Offer(2, "charge", per_seat=True),
    },
    # Its quota periods are calendar months, so its meters cannot be charged.
    "calendar": {
        "hard": Offer(9, "deny"),
        "charged": Offer(9, "allow"),
        "graced": Offer(9, "grace"),
        "soft": Offer(9, "allow"),
        "seats": Offer(9, "deny"),
    },
}
# The limits that pay-as-you-go uses in place of a plan's limits.
OVERLAYS = {"free": {"charged": Offer(4, "charge")}, "team": {"hard": Offer(4, "charge", per_seat=True)}}
SOLD = ("pro", "team", "calendar")


def document() -> dict[str, Any]:
    """Return the catalog as a document."""
    meters = {name: {"unit": "unit", "kind": "consumable"} for name in CONSUMABLES}
    meters |= {name: {"unit": "unit", "kind": "gauge"} for name in GAUGES}
    plans: dict[str, Any] = {}
    for name, limits in PLANS.items():
        plan: dict[str, Any] = {"name": name, "limits": {meter: offer.document for meter, offer in limits.items()}}
        if name in SOLD:
            plan["prices"] = {"monthly": {"amount": "20", "interval": "month", "per_seat": name == "team"}}
        if name == "calendar":
            plan["quota_period"] = "calendar_month"
        if name in OVERLAYS:
            overlay = {meter: offer.document for meter, offer in OVERLAYS[name].items()}
            plan["pay_as_you_go"] = {"name": "more", "limits": overlay}
        plans[name] = plan
    hard = {**meters["hard"], "operations": {"big": BIG}}
    return {
        "catalog": "everything",
        "currency": "usd",
        "default_plan": "free",
        "alert_percents": [50, 100],
        "grace_period": f"{GRACE_HOURS}h",
        "meters": {**meters, "hard": hard},
        "plans": plans,
    }
