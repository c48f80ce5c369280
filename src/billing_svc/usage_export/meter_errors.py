"""What Stripe reports hours after it accepted a meter event: that it could not count it after all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.usage_export import states, store

_log = structlog.get_logger(__name__)

# Stripe gives a few for each kind of error; more would be no report of Stripe's.
SAMPLES_MAX = 1_000
TEXT_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Sample:
    """One event that was not counted. Stripe names it by its identifier, or by its request's idempotency key."""

    code: str
    message: str
    identifier: str

    @property
    def report_identifier(self) -> str:
        """Return the identifier that it was sent under: our keys begin with it."""
        return self.identifier.partition(":")[0]


@dataclass(frozen=True, slots=True)
class MeterErrorReport:
    """An error report of a meter; `error_count` may be more than there are samples."""

    meter_id: str
    summary: str
    error_count: int
    samples: tuple[Sample, ...]


def from_stripe(data: Mapping[str, Any]) -> MeterErrorReport:
    """Read an event of the second API version, with its data. Raises ValueError if it is no error report."""
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
    """Mark the slices that a report names as failed, so that they are shown and sent anew; returns their accounts.

    A repeat finds them failed, or sent anew under other identifiers, and changes nothing. Where Stripe names fewer
    events than it lost, only the meter's sum tells which: a reconciliation shows it.
    """
    named = {sample.report_identifier: sample for sample in report.samples if sample.identifier}
    accounts = set()
    for slice_ in await store.named(conn, list(named)):
        sample = named[slice_.identifier]
        why = f"{sample.code}: {sample.message}"
        # It was received and not counted, so it is certain not to be in the meter's sum.
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
