"""Stripe's error reports about meter events that it accepted and, hours later, could not count."""

from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import parse
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


def from_stripe(data: object) -> MeterErrorReport:
    """Parse an event of Stripe's API version 2, with its data. Raises StripeObjectUnreadable."""
    event = parse.StripeFields.of(data, "event")
    carried = event.part("data")
    reason = carried.optional_part("reason")
    kinds = [] if reason is None or reason.get("error_types") is None else reason.each("error_types")
    samples = [
        _sample(parse.optional_text(kind.get("code")) or "", sample)
        for kind in kinds
        if kind.get("sample_errors") is not None
        for sample in kind.each("sample_errors")
    ]
    return MeterErrorReport(
        meter_id=parse.optional_id(event.get("related_object")) or "",
        summary=_sentence(carried.get("developer_message_summary")),
        error_count=len(samples) if reason is None else reason.whole("error_count", 0, otherwise=len(samples)),
        samples=tuple(samples[:SAMPLES_MAX]),
    )


def _sample(code: str, sample: parse.StripeFields) -> Sample:
    request = sample.optional_part("request")
    is_named = request is not None and request.get("identifier") not in (None, "")
    return Sample(
        code=code,
        message=_sentence(sample.get("error_message")),
        # An identifier that cannot be read may be that of a report that was not counted, so it is not left out.
        identifier=request.text("identifier") if request is not None and is_named else "",
    )


def _sentence(value: object) -> str:
    """Return a text for people, without characters that a column cannot hold."""
    text = value[:TEXT_LENGTH_MAX] if isinstance(value, str) else ""
    return "".join(letter if letter.isprintable() else " " for letter in text)


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
