"""Faults of Stripe and of the network, which the sandbox causes when told to."""

import dataclasses
import fnmatch
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic

from stripe_sandbox import errors

RULES_MAX = 100
"""The most rules in force; each request is compared with all of them."""

SECONDS_MAX = 300.0
"""The longest delay; no caller waits longer for an answer."""

LAG_SECONDS_MAX = 7 * 24 * 3600.0
"""The longest delay of `meter_lag`. No request waits for it, and the sandbox's clock can be moved past it."""

Kind = Literal[
    "delay",  # the answer comes late
    "rate_limited",  # 429; the request had no effect
    "conflict",  # 409; the request had no effect
    "unavailable",  # 503, as from a proxy before Stripe; no effect, and not stored with the idempotency key
    "broken",  # 500, stored with the idempotency key; `does_it`: the request had its effect
    "cut",  # the connection is cut; the request had no effect
    "lost_answer",  # the request had its effect, but its answer is lost
    "away",  # every connection is cut, and no event is sent
    "meter_lag",  # the usage of the request is accepted, but counts only `seconds` of the sandbox's time later
    "webhook_delay",
    "webhook_reorder",  # each event is sent after a random delay
    "webhook_duplicate",  # each event is sent twice
    "webhook_drop",  # not sent, but tried again later as after any failure; `never`: not tried again
]


class Rule(pydantic.BaseModel):
    """A fault, and the requests or events that it strikes."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    method: str = "*"
    path: Annotated[str, pydantic.Field(max_length=200)] = "*"
    """Matches a request's path, or a webhook event's type; `*` stands for any text."""
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    seed: int = 0
    skip: Annotated[int, pydantic.Field(ge=0)] = 0
    """How many first matches the fault spares."""
    count: Annotated[int, pydantic.Field(gt=0)] | None = None
    """How often the fault strikes; None: without end."""
    seconds: Annotated[float, pydantic.Field(ge=0, le=LAG_SECONDS_MAX)] | None = None
    """How long an answer or an event is delayed; for `lost_answer`, None: until the caller disconnects."""
    should_retry: bool | None = None
    """The value of the header Stripe-Should-Retry; None: no such header."""
    does_it: bool = False
    never: bool = False

    @pydantic.model_validator(mode="after")
    def _check_seconds(self) -> "Rule":
        if self.kind != "meter_lag" and (self.seconds or 0) > SECONDS_MAX:
            raise ValueError(f"seconds: at most {SECONDS_MAX:.0f}")
        return self


RULES = pydantic.TypeAdapter(Annotated[list[Rule], pydantic.Field(max_length=RULES_MAX)])


@dataclasses.dataclass(slots=True)
class _Armed:
    number: int
    rule: Rule
    chance: random.Random
    matched: int = 0
    struck: int = 0

    def strikes(self, method: str, path: str) -> bool:
        rule = self.rule
        if rule.count is not None and self.struck >= rule.count:
            return False
        if not (fnmatch.fnmatchcase(method, rule.method) and fnmatch.fnmatchcase(path, rule.path)):
            return False
        self.matched += 1
        if self.matched <= rule.skip or self.chance.random() >= rule.probability:
            return False
        self.struck += 1
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class Struck:
    """What happens to a request: a delay, then the fault of `rule`, if any."""

    delay_seconds: float = 0.0
    rule: Rule | None = None

    @property
    def kind(self) -> str | None:
        """The fault's kind, for the log; None without a fault."""
        return self.rule.kind if self.rule else "delay" if self.delay_seconds else None


@dataclasses.dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to an attempt to send an event; `forever`: no other attempt follows."""

    hold_seconds: float = 0.0
    copies: int = 1
    dropped: bool = False
    forever: bool = False


class Faults:
    """The rules in force."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._armed: list[_Armed] = []
        self._last = 0
        self.add(rules)

    def add(self, rules: Sequence[Rule]) -> list[int]:
        """Put rules in force and return their numbers. Raises InvalidParameter above `RULES_MAX` rules."""
        if len(self._armed) + len(rules) > RULES_MAX:
            raise errors.InvalidParameter(f"At most {RULES_MAX} faults at once.")
        numbers = []
        for rule in rules:
            self._last += 1
            # A seed makes the draws repeatable; they need not be unpredictable.
            chance = random.Random(rule.seed)  # noqa: S311 - see above
            self._armed.append(_Armed(self._last, rule, chance))
            numbers.append(self._last)
        return numbers

    def clear(self, number: int | None = None) -> None:
        """Remove the rule with a number; None: all rules."""
        self._armed = [each for each in self._armed if number is not None and each.number != number]

    def shown(self) -> list[dict[str, Any]]:
        """Return the rules, and how often each struck."""
        return [
            {"id": each.number, **each.rule.model_dump(exclude_defaults=True), "struck": each.struck}
            for each in self._armed
        ]

    @property
    def is_away(self) -> bool:
        """Whether the fault `away` is in force: no request reaches the sandbox, and no event leaves it."""
        return any(each.rule.kind == "away" for each in self._armed)

    def of_request(self, method: str, path: str) -> Struck:
        """Draw what happens to a request: the sum of the delays, up to the first other fault that strikes."""
        delay_seconds = 0.0
        for rule in self._striking(method, path, webhooks=False):
            if rule.kind != "delay":
                return Struck(delay_seconds, rule)
            delay_seconds += rule.seconds or 0.0
        return Struck(delay_seconds)

    def of_webhook(self, event_type: str, *, first_attempt: bool) -> Treatment:
        """Draw what happens to an attempt to send an event; only the first attempt is delayed."""
        treatment = Treatment()
        for rule in self._striking("POST", event_type, webhooks=True):
            match rule.kind:
                case "webhook_delay" if first_attempt:
                    treatment = dataclasses.replace(treatment, hold_seconds=rule.seconds or 0.0)
                case "webhook_reorder" if first_attempt:
                    # A second draw from the rule's generator, so it is repeatable too.
                    held = self._drawn(rule) * (1.0 if rule.seconds is None else rule.seconds)
                    treatment = dataclasses.replace(treatment, hold_seconds=treatment.hold_seconds + held)
                case "webhook_duplicate":
                    treatment = dataclasses.replace(treatment, copies=2)
                case "webhook_drop":
                    treatment = dataclasses.replace(treatment, dropped=True, forever=rule.never)
                case _:
                    pass
        return treatment

    def _striking(self, method: str, path: str, *, webhooks: bool) -> Iterator[Rule]:
        for each in self._armed:
            if each.rule.kind == "away":
                continue  # see `is_away`
            if each.rule.kind.startswith("webhook_") == webhooks and each.strikes(method, path):
                yield each.rule

    def _drawn(self, rule: Rule) -> float:
        return next(each.chance.random() for each in self._armed if each.rule is rule)


def read(file: pathlib.Path) -> list[Rule]:
    """Return the rules of a file with a JSON list. Raises ValueError that names the mistake."""
    try:
        return RULES.validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        raise ValueError(f"{file}: {error}") from error
