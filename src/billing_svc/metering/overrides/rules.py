"""The requests to set and to remove an override. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class OverrideSetting:
    """An override to be set; `included` None: unlimited."""

    account_id: str
    meter: str
    included: int | None
    expires_at: datetime | None
    note: str
    caller: str
    request_id: str


@dataclass(frozen=True, slots=True)
class OverrideRemoval:
    """An override to be removed."""

    account_id: str
    meter: str
    caller: str
    request_id: str
