"""Stripe's error reports about meter events that it accepted and, hours later, could not count."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.usage_export import states, store

_log = structlog.get_logger(__name__)

# Stripe sends a few samples for each kind of error; a longer list is not plausible and is cut.
SAMPLES_MAX = 1_000
TEXT_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Sample:
    """A meter event that was not counted. Stripe names its identifier, or the idempotency key of its request."""

    code: str
    message: str
    identifier: str

    @property
    def report_identifier(self) -> str:
        """Return the identifier of the usage report: idempotency keys begin with it."""
        return self.identifier.partition(":")[0]


@dataclass(frozen=True, slots=True)
class MeterErrorReport:
    """An error report of a meter; Stripe counts all errors in `error_count` and lists only some as samples."""

    meter_id: str
    summary: str
    error_count: int
    samples: tuple[Sample, ...]


def from_stripe(data: Mapping[str, Any]) -> MeterErrorReport:
    """Parse an event of Stripe's API version 2, with its data. Raises ValueError if it is not an error report."""
    try:
        carried = data["data"]
        reason = carried.get("reason") or {}
        samples = [
            Sample(
                code=str(kind.get("code", "")),
                message=str(sample.get("error_message", ""))[:TEXT_LENGTH_MAX],
                identifier=str((sample.get("request") or {}).get("identifier", "")),
            )
            for kind in reason.get("error_types") or ()
            for sample in kind.get("sample_errors") or ()
        ]
        return MeterErrorReport(
            meter_id=str((data.get("related_object") or {}).get("id", "")),
            summary=str(carried.get("developer_message_summary", ""))[:TEXT_LENGTH_MAX],
            error_count=int(reason.get("error_count", len(samples))),
            samples=tuple(samples[:SAMPLES_MAX]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a meter's error report: {error!r}") from error


async def apply(
    conn: AsyncConnection, report: MeterErrorReport, origin: audit_store.Origin, now: datetime
) -> list[str]:
    """Mark the usage reports that the error report names as failed, and return their accounts.

    A repeat changes nothing: these reports are failed already, or have new identifiers. If Stripe names fewer events
    than it lost, only the meter's total shows the difference, and the reconciliation reports it.
    """
    named = {sample.report_identifier: sample for sample in report.samples if sample.identifier}
    accounts = set()
    for slice_ in await store.named(conn, list(named)):
        sample = named[slice_.identifier]
        why = f"{sample.code}: {sample.message}"
        # Stripe received the event and did not count it, so the meter's total certainly excludes it.
        if await store.write(conn, slice_, states.failed_absent(now, why)):
            accounts.add(slice_.account_id)
            changes = {"report": slice_.report_id, "meter": slice_.meter, "units": slice_.units, "error": sample.code}
            await audit_store.append(conn, origin, slice_.account_id, "usage.report_failed", changes, now)
    _log.error(
        "meter_errors",
        meter=report.meter_id,
        summary=report.summary,
        errors=report.error_count,
        named=len(named),
        accounts=sorted(accounts),
    )
    return sorted(accounts)
