"""The states of a usage report, and the columns that each transition writes. Pure: `now` is an argument.

ADR 0007 explains the states and has the same transitions. `store.write` refuses all other transitions.
"""

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, Unpack


class ReportState(enum.StrEnum):
    """How a usage report is charged, or what it waits for."""

    SEALED = "sealed"
    SENT = "sent"
    LATE = "late"
    ITEMISED = "itemised"
    INVOICED = "invoiced"
    VOID = "void"
    FAILED = "failed"
    WRITTEN_OFF = "written_off"
    PAID_BACK = "paid_back"  # a report begins in this state, and stays there


# The states in which the worker still has to act.
OPEN = (ReportState.SEALED, ReportState.LATE, ReportState.ITEMISED)


class Transition(enum.Enum):
    """The target state and the possible source states. The function with the same lower-case name sets the columns."""

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
    # `write_off_rules` says when.
    WRITTEN_OFF = ReportState.WRITTEN_OFF, (*OPEN, ReportState.SENT, ReportState.INVOICED, ReportState.FAILED)

    def __init__(self, target: ReportState, sources: tuple[ReportState, ...]) -> None:
        self.target = target
        self.sources = sources


class Columns(TypedDict, total=False):
    """The columns of a stored report that may be written, except its state: only a transition changes the state."""

    to_units: int
    reported_for: datetime
    period_end: datetime
    identifier: str
    attempts: int
    next_attempt_at: datetime
    first_attempt_at: None  # only `store.begin_attempt` stores an attempt
    last_attempt_at: None
    refused_at: datetime | None
    error: str | None
    amount: int | None
    invoice_item_id: str | None
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """The values to write to a report; without a transition, its state does not change."""

    columns: Columns
    transition: Transition | None = None


def resealed(now: datetime, identifier: str) -> Change:
    """Start again under a new identifier: the attempt did not arrive and cannot arrive any more."""
    return _to(Transition.RESEALED, now, identifier=identifier, first_attempt_at=None, error="did not arrive")


def retried(now: datetime, identifier: str, first_attempt_at: datetime | None, refused_at: datetime | None) -> Change:
    """Try a failed report again; under a new identifier only if it is certain not to be at Stripe."""
    if first_attempt_at is None:
        return _to(Transition.RETRIED, now, identifier=identifier, attempts=0, last_attempt_at=None, refused_at=None)
    return _to(Transition.RETRIED, now, refused_at=refused_at or now)  # so that the meter's total is compared first


def sent(now: datetime) -> Change:
    """Note that the report's meter has the event and bills it."""
    return _to(Transition.SENT, now, error=None)


def too_late(now: datetime, why: str) -> Change:
    """Leave a report to an invoice item: it is certain not to be at Stripe, and its meter cannot bill it any more."""
    return _to(Transition.TOO_LATE, now, error=why)


def unbilled(now: datetime, why: str) -> Change:
    """Leave a report to an invoice item: its meter counted it, but no invoice charges it."""
    return _to(Transition.UNBILLED, now, error=why)


def itemised(now: datetime, amount: int, invoice_item_id: str) -> Change:
    """Store an item that needs its own invoice: no subscription is left whose next invoice would take it."""
    return _to(Transition.ITEMISED, now, amount=amount, invoice_item_id=invoice_item_id)


def uninvoiced(now: datetime) -> Change:
    """Let an item have its own invoice: the next invoice, which was to take it, was never created."""
    return _to(Transition.UNINVOICED, now, error="its item was on no invoice")


def invoiced(now: datetime, amount: int, invoice_item_id: str | None) -> Change:
    """Store an item that the next invoice takes; for an amount of 0 there is no item."""
    return _to(Transition.INVOICED, now, amount=amount, invoice_item_id=invoice_item_id)


def invoiced_alone(now: datetime) -> Change:
    """Note that an item is on its own invoice."""
    return _to(Transition.INVOICED_ALONE, now)


def failed_absent(now: datetime, why: str) -> Change:
    """Fail a report that is certain not to be at Stripe: a retry may use a new identifier."""
    return _to(Transition.FAILED_ABSENT, now, error=why, first_attempt_at=None)


def failed_undecided(now: datetime, why: str) -> Change:
    """Fail a report that may be at Stripe, and keep its first attempt: a new identifier might count it twice."""
    return _to(Transition.FAILED_UNDECIDED, now, error=why)


def failed_item(now: datetime, why: str) -> Change:
    """Fail a report whose invoice item Stripe refused, and keep its first attempt: its meter may have it."""
    return _to(Transition.FAILED_ITEM, now, error=why, amount=None)


def voided(now: datetime, **columns: Unpack[Columns]) -> Change:
    """Close a report whose units were taken back before it was sent."""
    return _to(Transition.VOIDED, now, **columns)


def written_off(now: datetime, note: str) -> Change:
    """Close a report that will never be charged, because a person decided so; its item is gone, or never was."""
    return _to(Transition.WRITTEN_OFF, now, error=note, amount=None)


def _to(transition: Transition, now: datetime, **columns: Unpack[Columns]) -> Change:
    """Set the closing time if the target state is final; else make the report due at once."""
    if transition.target in OPEN:
        return Change({**columns, "next_attempt_at": now, "closed_at": None}, transition)
    return Change({**columns, "closed_at": now}, transition)
