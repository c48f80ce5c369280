"""What a correction is. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Correction:
    """What is to be taken back; `quantity` None: all that is left of the event."""

    account_id: str
    correction_id: str
    event_id: str
    quantity: int | None
    note: str
    caller: str
    request_id: str

    @property
    def content(self) -> tuple[str, int | None, str]:
        """Return what a repeat under the same id must agree in."""
        return (self.event_id, self.quantity, self.note)


@dataclass(frozen=True, slots=True)
class Corrected:
    """The answer to a correction, in units of the meter; a repeat is given the same numbers again."""

    duplicate: bool
    meter: str
    units: int
    billable: int
    left: int
    used: int
    total_billable: int
    period_start: datetime
    period_end: datetime
