"""What a correction is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Correction:
    """What a caller takes back; `quantity` None: all units that are left of the event."""

    account_id: str
    correction_id: str
    event_id: str
    quantity: int | None
    note: str
    caller: str
    request_id: str
    even_if_credited: bool = False

    @property
    def content(self) -> tuple[str, int | None, str, bool]:
        """Return the content that a repeat of the same id must have."""
        return (self.event_id, self.quantity, self.note, self.even_if_credited)


@dataclass(frozen=True, slots=True)
class Credit:
    """What was paid back of an invoice that charged the counter, in minor units."""

    invoice_id: str
    currency: str
    amount_refunded: int
    amount_credited: int
    dispute_status: str | None


@dataclass(frozen=True, slots=True)
class Corrected:
    """The answer to a correction, in units of the meter; a repeat gets the same numbers again."""

    duplicate: bool
    meter: str
    units: int
    billable: int
    left: int
    used: int
    total_billable: int
    period_start: datetime
    period_end: datetime
    credits: Sequence[Credit] = ()
    # Units of `billable` that are not credited, because of `credits`.
    not_credited: int = 0
