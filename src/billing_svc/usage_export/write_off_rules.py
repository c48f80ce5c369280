"""Which usage reports can be written off: those that nothing has charged, and nothing will charge. Pure."""

import enum
from dataclasses import dataclass
from typing import TypeAlias

from billing_svc.usage_export import rules
from billing_svc.usage_export.states import ReportState

# The state of the write that creates a report's invoice item: open, done or refused; None if it was never begun.
ItemWrite: TypeAlias = str | None


class Evidence(enum.Enum):
    """What has to be asked of Stripe first."""

    NOTHING = enum.auto()
    # Whether its invoice item is gone.
    ITEM = enum.auto()
    # Whether its subscription's invoices charge it.
    INVOICES = enum.auto()


@dataclass(frozen=True, slots=True)
class Judgement:
    """Why a report cannot be written off; empty if it can, as far as the stored state shows. Then `needs` is asked."""

    refusal: str
    needs: Evidence = Evidence.NOTHING


_UNKNOWN = "whether Stripe has it is not known yet; the worker finds out"
_FOR_EVER = {
    ReportState.VOID: "it has no units",
    ReportState.WRITTEN_OFF: "it is written off already",
    ReportState.PAID_BACK: "it takes back what was paid back already",
}


def judge(report: rules.UsageReport, item_write: ItemWrite) -> Judgement:
    """Judge a report by what is stored of it. An outcome that is not known could be a charge."""
    refusal, needs = _FOR_EVER.get(report.state, ""), Evidence.NOTHING
    match report.state:
        case ReportState.SEALED if report.first_attempt_at is not None:
            refusal = _UNKNOWN
        case ReportState.LATE if item_write in {"open", "done"}:
            refusal = _UNKNOWN
        # An item that was refused shows that no invoice charges the report: only then it was left to an item.
        case ReportState.FAILED if report.first_attempt_at is not None and item_write != "refused":
            refusal = "whether its meter has it is not known; `billing-svc reconcile --fix` looks again"
        case ReportState.ITEMISED | ReportState.INVOICED if report.invoice_item_id is None:
            refusal = "its amount is 0, so nothing is owed for it"
        case ReportState.ITEMISED | ReportState.INVOICED:
            needs = Evidence.ITEM
        case ReportState.SENT:
            needs = Evidence.INVOICES
        case _:
            pass
    return Judgement(refusal, needs)
