"""In which period and under which terms a usage event counts. Pure: no I/O, `now` is an argument."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from billing_svc.catalog import model, parts
from billing_svc.metering.gauges import rules as gauges_rules
from billing_svc.metering.quota import holds, terms
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform import errors, values

# A past period takes late events for this long; after that they count in the current period.
PERIOD_STAYS_OPEN = timedelta(minutes=30)
# The clock of a caller may be ahead by this much.
FUTURE_TOLERANCE = timedelta(minutes=5)
# Events older than this are refused: the invoice of their period was paid long ago.
RETENTION = timedelta(days=400)
# The most hours that a time zone lies behind UTC.
HOURS_BEHIND_UTC_MAX = 12
# How long the delivery of an event takes if nothing is wrong.
TRAVEL = timedelta(seconds=10)


@values.value
class SentEvent:
    """The content of an event as sent. A repeated event id is the same event if its content is equal."""

    meter: str | None
    operation: str | None
    quantity: int | None
    level: int | None
    occurred_at: datetime | None
    properties: Mapping[str, str]

    @property
    def quantity_or_one(self) -> int:
        """Return the quantity; 1 if it was left out."""
        return 1 if self.quantity is None else self.quantity


@values.value
class NewEvent:
    """A usage event to be recorded; with `reject`, only if the quota allows it."""

    account_id: str
    event_id: str
    sent: SentEvent
    retry_attempt: int
    reject: bool
    # Empty: it settles no reservation.
    reservation_id: str
    caller: str
    request_id: str

    @property
    def key(self) -> tuple[str, str]:
        """Return the key of the event."""
        return (self.account_id, self.event_id)

    @property
    def reservation_key(self) -> tuple[str, str]:
        """Return the key of the reservation that the event settles."""
        return (self.account_id, self.reservation_id)


@values.value
class RecordedEvent:
    """The answer to a recorded event; a repeat gets the same numbers again."""

    meter: str
    units: int
    billable: int
    period_start: datetime
    period_end: datetime
    plan: str
    catalog_version: int
    used: int
    reserved: int
    total_billable: int
    remaining: int
    included: int | None
    overridden: bool
    reason: quota_rules.Reason
    superseded: bool
    reservation_outcome: holds.SettlementOutcome | None


@values.value
class HoldTerms:
    """The terms stored with a hold; its settlement is decided, counted and charged by them, up to the units held."""

    plan: str
    catalog_version: int
    reason: quota_rules.Reason
    allowance: terms.Allowance
    # The start of the period in which the hold was decided, and how many of its units were within the included
    # quantity.
    period_start: datetime
    units_within: int

    def count(
        self,
        target: terms.EffectiveTerms,
        in_force: terms.Allowance,
        counter: quota_rules.Counter,
        units: int,
        now: datetime,
    ) -> quota_rules.Counter:
        """Return the counter with `units` of the hold added.

        The included quantity of the hold's plan does not exist in a period of another plan. There, exactly the units
        are charged that the answer to the hold said would be charged.
        """
        is_elsewhere = target.period.start != self.period_start and (target.plan.key, target.catalog_version) != (
            self.plan,
            self.catalog_version,
        )
        if not is_elsewhere or counter.level is not None:
            return quota_rules.count_held(self.allowance, in_force, counter, units, now)
        charged = max(0, units - self.units_within) if self.allowance.charges else 0
        return replace(counter, used=counter.used + units, billable=counter.billable + charged)


@values.value
class HeldPart:
    """The billable units of an event that are charged under its hold's terms, if the event's own terms differ."""

    plan: str
    catalog_version: int
    billable: int


@values.value
class DeniedEvent:
    """The answer to an event with `reject` that the quota does not allow: nothing was written."""

    meter: str
    units: int
    under: terms.EffectiveTerms
    allowance: terms.Allowance
    counter: quota_rules.Counter
    decision: quota_rules.Decision
    upgrade_plans: tuple[str, ...]


def check_kind(sent: SentEvent, meter: parts.Meter) -> None:
    """Raise InvalidRequest if an event does not fit the kind of its meter."""
    if meter.kind == "gauge":
        return
    if sent.level is not None:
        raise errors.InvalidRequest([errors.FieldViolation("level", "only a gauge has a level; send a quantity")])
    if sent.quantity is not None and sent.quantity < 0:
        raise errors.InvalidRequest([errors.FieldViolation("quantity", "must be at least 1 on a consumable meter")])


def units(event: NewEvent, level: gauges_rules.Level | None, meter: str, asked: int, occurred_at: datetime) -> int:
    """Return the units of an event; of a gauge the change of its level. Raises InvalidRequest if they are out of range.

    `asked` is its quantity in the meter's units, an operation's cost included.
    """
    if event.retry_attempt:
        # A retry of recorded work is stored with 0 units and never denied.
        return 0
    if level is None:
        if asked > quota_rules.UNITS_MAX:
            violation = errors.FieldViolation(
                "quantity", f"comes to {asked} units; at most {quota_rules.UNITS_MAX} are allowed"
            )
            raise errors.InvalidRequest([violation])
        return asked
    if is_superseded(event, level, occurred_at):
        return 0
    if event.sent.level is not None:
        return event.sent.level - level.level
    if level.level + asked < 0:
        message = f"quantity: the level is {level.level}; a change of {asked} would take it below 0"
        raise errors.LevelBelowZero(message, {"meter": meter, "level": str(level.level)})
    if level.level + asked > quota_rules.UNITS_MAX:
        violation = errors.FieldViolation("quantity", f"takes the level past {quota_rules.UNITS_MAX}")
        raise errors.InvalidRequest([violation])
    return asked


def is_superseded(event: NewEvent, level: gauges_rules.Level, occurred_at: datetime) -> bool:
    """Say whether a gauge's latest absolute level was measured after the event, and so contains it.

    A change that does not say when it happened happens now: a set by a clock that is ahead does not contain it.
    """
    if event.retry_attempt or (event.sent.level is None and event.sent.occurred_at is None):
        return False
    return level.is_newer_than(occurred_at)


def check_occurred_at(occurred_at: datetime | None, now: datetime) -> datetime:
    """Return when the event happened; now if it does not say. Raises InvalidRequest outside the tolerance."""
    if occurred_at is None:
        return now
    if occurred_at > now + FUTURE_TOLERANCE:
        limit = f"must not lie more than {FUTURE_TOLERANCE.seconds // 60} minutes ahead of now ({now.isoformat()})"
        raise errors.InvalidRequest([errors.FieldViolation("occurred_at", limit)])
    if occurred_at < now - RETENTION:
        limit = f"must not lie more than {RETENTION.days} days back"
        raise errors.InvalidRequest([errors.FieldViolation("occurred_at", limit)])
    return occurred_at


def whole_hours_late(occurred_at: datetime, now: datetime) -> int:
    """Return how many whole hours an event is late, give or take its delivery time; 0 if it is not whole hours.

    A caller west of UTC that sends its local time as UTC sends such events. It may also be a coincidence, so the event
    is counted and logged, not refused.
    """
    hours, rest = divmod(now - occurred_at, timedelta(hours=1))
    return hours if 1 <= hours <= HOURS_BEHIND_UTC_MAX and rest <= TRAVEL else 0


def terms_of_event(
    account_state: terms.AccountState, catalogs: Mapping[int, model.Catalog], occurred_at: datetime, now: datetime
) -> terms.EffectiveTerms:
    """Return the terms, and with them the period, under which an event counts.

    That is the period in which it happened, until `PERIOD_STAYS_OPEN` after that period's end; after that, the current
    period.
    """
    then = terms.effective_terms(account_state, catalogs, occurred_at)
    if now < then.period.end + PERIOD_STAYS_OPEN:
        return then
    return terms.effective_terms(account_state, catalogs, now)
