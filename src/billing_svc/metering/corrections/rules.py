"""What a correction is. Pure."""

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

    @property
    def content(self) -> tuple[str, int | None, str]:
        """Return the content that a repeat of the same id must have."""
        return (self.event_id, self.quantity, self.note)


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
