"""The states of a usage report, and what is written with each transition. Pure: `now` is an argument.

ADR 0007 says what the states mean, and has the same transitions. `store.write` refuses every other one.
"""

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, Unpack


class ReportState(enum.StrEnum):
    """How a slice is charged, or what it waits for."""

    SEALED = "sealed"
    SENT = "sent"
    LATE = "late"
    ITEMISED = "itemised"
    INVOICED = "invoiced"
    VOID = "void"
    FAILED = "failed"


# What the worker has to do something about.
OPEN = (ReportState.SEALED, ReportState.LATE, ReportState.ITEMISED)


class Transition(enum.Enum):
    """The state that each ends in, and those that it may begin in. The function of the same name has its columns."""

    RESEALED = ReportState.SEALED, (ReportState.SEALED,)
    RETRIED = ReportState.SEALED, (ReportState.FAILED,)
    SENT = ReportState.SENT, (ReportState.SEALED,)
    TOO_LATE = ReportState.LATE, (ReportState.SEALED,)
    UNBILLED = ReportState.LATE, (ReportState.SENT,)
    ITEMISED = ReportState.ITEMISED, (ReportState.LATE,)
    UNINVOICED = ReportState.ITEMISED, (ReportState.INVOICED,)
    INVOICED = ReportState.INVOICED, (ReportState.LATE,)
    INVOICED_ALONE = ReportState.INVOICED, (ReportState.ITEMISED,)
    FAILED_ABSENT = ReportState.FAILED, (ReportState.SEALED, ReportState.SENT)
    FAILED_UNDECIDED = ReportState.FAILED, (ReportState.SEALED,)
    FAILED_ITEM = ReportState.FAILED, (ReportState.LATE,)
    VOIDED = ReportState.VOID, (ReportState.SEALED,)

    def __init__(self, target: ReportState, sources: tuple[ReportState, ...]) -> None:
        self.target = target
        self.sources = sources


class Columns(TypedDict, total=False):
    """What may be written of a stored slice, apart from its state: only a transition changes that."""

    to_units: int
    reported_for: datetime
    period_end: datetime
    identifier: str
    attempts: int
    next_attempt_at: datetime
    first_attempt_at: None  # an attempt is stored by `store.begin_attempt` alone
    last_attempt_at: None
    refused_at: datetime | None
    error: str | None
    amount: int | None
    invoice_item_id: str | None
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """What is written of a slice; without a transition, it stays in its state."""

    columns: Columns
    transition: Transition | None = None


def resealed(now: datetime, identifier: str) -> Change:
    """Begin anew, under a new identifier, with what has not arrived and cannot arrive any more."""
    return _to(Transition.RESEALED, now, identifier=identifier, first_attempt_at=None, error="did not arrive")


def retried(now: datetime, identifier: str, first_attempt_at: datetime | None, refused_at: datetime | None) -> Change:
    """Try again what failed: under a new identifier only if it is certain not to be at Stripe."""
    if first_attempt_at is None:
        return _to(Transition.RETRIED, now, identifier=identifier, attempts=0, last_attempt_at=None, refused_at=None)
    return _to(Transition.RETRIED, now, refused_at=refused_at or now)  # so the meter's sum is looked at first


def sent(now: datetime) -> Change:
    """Note that its meter has it, and bills it."""
    return _to(Transition.SENT, now, error=None)


def too_late(now: datetime, why: str) -> Change:
    """Leave to an invoice item what is certain not to be at Stripe, and what its meter cannot bill any more."""
    return _to(Transition.TOO_LATE, now, error=why)


def unbilled(now: datetime, why: str) -> Change:
    """Leave to an invoice item what its meter has and no invoice charges."""
    return _to(Transition.UNBILLED, now, error=why)


def itemised(now: datetime, amount: int, invoice_item_id: str) -> Change:
    """Note an item that needs an invoice of its own: no subscription is left whose next one takes it in."""
    return _to(Transition.ITEMISED, now, amount=amount, invoice_item_id=invoice_item_id)


def uninvoiced(now: datetime) -> Change:
    """Let an item have an invoice of its own: the next one, which was to take it in, did not come."""
    return _to(Transition.UNINVOICED, now, error="its item was on no invoice")


def invoiced(now: datetime, amount: int, invoice_item_id: str | None) -> Change:
    """Note an item that the next invoice takes in; for an amount of 0 there is none."""
    return _to(Transition.INVOICED, now, amount=amount, invoice_item_id=invoice_item_id)


def invoiced_alone(now: datetime) -> Change:
    """Note that an item is on an invoice of its own."""
    return _to(Transition.INVOICED_ALONE, now)


def failed_absent(now: datetime, why: str) -> Change:
    """Keep what is certain not to be at Stripe: a retry may use a new identifier."""
    return _to(Transition.FAILED_ABSENT, now, error=why, first_attempt_at=None)


def failed_undecided(now: datetime, why: str) -> Change:
    """Keep what may be at Stripe, and its first attempt: a retry under a new identifier might count it twice."""
    return _to(Transition.FAILED_UNDECIDED, now, error=why)


def failed_item(now: datetime, why: str) -> Change:
    """Keep what Stripe made no item of, and its first attempt: its meter may have it."""
    return _to(Transition.FAILED_ITEM, now, error=why, amount=None)


def voided(now: datetime, **columns: Unpack[Columns]) -> Change:
    """Close what was corrected away before it was sent."""
    return _to(Transition.VOIDED, now, **columns)


def _to(transition: Transition, now: datetime, **columns: Unpack[Columns]) -> Change:
    """Date the end of what needs nothing more; everything else is due at once."""
    if transition.target in OPEN:
        return Change({**columns, "next_attempt_at": now, "closed_at": None}, transition)
    return Change({**columns, "closed_at": now}, transition)
