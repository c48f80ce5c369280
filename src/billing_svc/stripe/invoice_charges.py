"""What the status of an invoice means for the money of its lines. Pure; ADR 0025 has the same table."""

import enum
from collections.abc import Mapping
from typing import Any

from billing_svc.stripe import parse

# A revision can be revised; a longer chain is not plausible.
REVISIONS_MAX = 10


class ChargeState(enum.Enum):
    """What became of an invoice's lines."""

    # Paid or open: the customer has paid, or owes it.
    CHARGED = enum.auto()
    # Uncollectible: charged, and given up.
    LOST = enum.auto()
    # Void: a person took it back; the service never charges it again.
    FORGIVEN = enum.auto()
    # A draft: nobody is charged yet, and its usage is still counted.
    WAITING = enum.auto()


_STATES = {
    "draft": ChargeState.WAITING,
    "open": ChargeState.CHARGED,
    "paid": ChargeState.CHARGED,
    "uncollectible": ChargeState.LOST,
    "void": ChargeState.FORGIVEN,
}


def state_of(invoice: Mapping[str, Any]) -> ChargeState:
    """Return the state of an invoice's lines; ask `revision_of` first. Raises StripeObjectUnreadable.

    A status that this version does not know raises too: neither to charge again nor to forgive would be safe.
    """
    fields = parse.StripeFields.of(invoice, "invoice")
    found = _STATES.get(fields.text("status"))
    if found is None:
        raise fields.refused("status", "a status that is known here")
    return found


def revision_of(invoice: Mapping[str, Any]) -> str | None:
    """Return the id of the invoice that decides in place of this one; None: this one decides.

    A void invoice that was revised is judged by its latest revision.
    """
    if invoice.get("status") != "void":
        return None
    return parse.optional_id(invoice.get("latest_revision"))
