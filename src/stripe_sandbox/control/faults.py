"""Faults that the sandbox brings about when it is told to, as Stripe and the network do by themselves."""

import dataclasses
import fnmatch
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic

from stripe_sandbox import errors

RULES_MAX = 100
"""In force at once; each request looks at all of them."""

SECONDS_MAX = 300.0
"""Of a delay. Nobody waits longer for an answer."""

Kind = Literal[
    "delay",  # the answer comes late
    "rate_limited",  # 429; nothing was done
    "conflict",  # 409; nothing was done
    "unavailable",  # 503 of what stands before Stripe; nothing was done, and no key remembers it
    "broken",  # 500, which the idempotency key keeps; `does_it` says whether it was done
    "cut",  # the connection is cut; nothing was done
    "lost_answer",  # it was done, but the answer is lost
    "away",  # every connection is cut, and no event is sent
    "webhook_delay",
    "webhook_reorder",  # each event is held for a random time
    "webhook_duplicate",  # sent twice
    "webhook_drop",  # not sent, but later again as after any failure; or `never`
]


class Rule(pydantic.BaseModel):
    """One fault: what it does, to whom, and how often."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    method: str = "*"
    path: Annotated[str, pydantic.Field(max_length=200)] = "*"
    """Of requests their path, of webhooks their event's type; `*` stands for anything."""
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    seed: int = 0
    skip: Annotated[int, pydantic.Field(ge=0)] = 0
    """How many matches pass unharmed first."""
    count: Annotated[int, pydantic.Field(gt=0)] | None = None
    """How often it strikes; left out, for ever."""
    seconds: Annotated[float, pydantic.Field(ge=0, le=SECONDS_MAX)] | None = None
    """How long an answer or an event is held; for `lost_answer`: left out, until the caller gives up."""
    should_retry: bool | None = None
    """What the header Stripe-Should-Retry says; left out, there is none."""
    does_it: bool = False
    never: bool = False


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
    """What happens to one request: it is held, and then one fault strikes, if any."""

    delay_seconds: float = 0.0
    rule: Rule | None = None

    @property
    def kind(self) -> str | None:
        """The fault's kind, for the log."""
        return self.rule.kind if self.rule else "delay" if self.delay_seconds else None


@dataclasses.dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to one attempt to send an event."""

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
        """Put rules in force and give their numbers. Raises InvalidParameter past the bound."""
        if len(self._armed) + len(rules) > RULES_MAX:
            raise errors.InvalidParameter(f"At most {RULES_MAX} faults at once.")
        numbers = []
        for rule in rules:
            self._last += 1
            # The draws must be repeatable, not unguessable.
            chance = random.Random(rule.seed)  # noqa: S311 - see above
            self._armed.append(_Armed(self._last, rule, chance))
            numbers.append(self._last)
        return numbers

    def clear(self, number: int | None = None) -> None:
        """Take back one rule, or all."""
        self._armed = [each for each in self._armed if number is not None and each.number != number]

    def shown(self) -> list[dict[str, Any]]:
        """Give the rules with how often they struck."""
        return [
            {"id": each.number, **each.rule.model_dump(exclude_defaults=True), "struck": each.struck}
            for each in self._armed
        ]

    @property
    def is_away(self) -> bool:
        """Whether nothing reaches the sandbox, nor leaves it."""
        return any(each.rule.kind == "away" for each in self._armed)

    def of_request(self, method: str, path: str) -> Struck:
        """Draw what happens to a request: all delays that match, and the first other fault."""
        delay_seconds = 0.0
        for rule in self._striking(method, path, webhooks=False):
            if rule.kind != "delay":
                return Struck(delay_seconds, rule)
            delay_seconds += rule.seconds or 0.0
        return Struck(delay_seconds)

    def of_webhook(self, event_type: str, *, first_attempt: bool) -> Treatment:
        """Draw what happens to an attempt to send an event; only its first is held."""
        treatment = Treatment()
        for rule in self._striking("POST", event_type, webhooks=True):
            match rule.kind:
                case "webhook_delay" if first_attempt:
                    treatment = dataclasses.replace(treatment, hold_seconds=rule.seconds or 0.0)
                case "webhook_reorder" if first_attempt:
                    # A second draw from the same chance: repeatable as the first.
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
                continue  # `is_away` concerns everything
            if each.rule.kind.startswith("webhook_") == webhooks and each.strikes(method, path):
                yield each.rule

    def _drawn(self, rule: Rule) -> float:
        return next(each.chance.random() for each in self._armed if each.rule is rule)


def read(file: pathlib.Path) -> list[Rule]:
    """Give the rules of a file, a JSON list. Raises ValueError with what is wrong."""
    try:
        return RULES.validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        raise ValueError(f"{file}: {error}") from error
