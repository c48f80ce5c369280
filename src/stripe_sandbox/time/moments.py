"""The time of an object's next change, which is stored in a column of its row, so that it can be selected."""

from collections.abc import Iterator
from typing import Any

DAY_SECONDS = 24 * 3600

INCOMPLETE_SECONDS = 23 * 3600
"""How long a subscription waits for its first payment."""

DEBIT_SECONDS = 4 * DAY_SECONDS
"""How long a debit takes until it has succeeded or failed."""

PENDING_UPDATE_SECONDS = 23 * 3600
"""How long a pending update waits for its payment."""

RESUMPTION_SECONDS = 23 * 3600
"""How long a paused subscription waits for a payment that resumes it."""

TRIAL_NOTICE_SECONDS = 3 * DAY_SECONDS
"""How long before the end of a trial an event announces it."""

BILLED_STATUSES = frozenset({"active", "past_due", "unpaid", "trialing"})


def of(body: dict[str, Any]) -> tuple[int, str] | None:
    """Return the unix time of the object's next change and its name; None if there is none."""
    match body.get("object"):
        case "subscription":
            return min(_of_subscription(body), default=None)
        case "invoice":
            return _of_invoice(body)
        case _:
            return None


def _of_subscription(body: dict[str, Any]) -> Iterator[tuple[int, str]]:
    status = body["status"]
    if status == "incomplete":
        yield body["created"] + INCOMPLETE_SECONDS, "expires unpaid"
    if status not in BILLED_STATUSES | {"paused"}:
        return
    if body["cancel_at"] is not None:
        yield body["cancel_at"], "ends"
    if pending := body.get("_pending_update"):
        yield pending["expires_at"], "drops its pending update"
    if (body.get("pause_collection") or {}).get("resumes_at") is not None:
        yield body["pause_collection"]["resumes_at"], "collects payments again"
    if status == "paused":
        if (expires_at := (body.get("_resumption") or {}).get("expires_at")) is not None:
            yield expires_at, "stays paused"
        return
    yield min(item["current_period_end"] for item in body["items"]["data"]), "renews"
    if status == "trialing" and not body.get("_end_of_trial_announced"):
        yield max(body["created"], body["trial_end"] - TRIAL_NOTICE_SECONDS), "announces the end of its trial"
    if body.get("_phase_end") is not None:
        yield body["_phase_end"], "enters its next phase"


def _of_invoice(body: dict[str, Any]) -> tuple[int, str] | None:
    if body["status"] == "open" and body.get("_debit"):
        return body["_debit"]["ends_at"], "is debited"
    if not body["auto_advance"]:
        return None
    if body["status"] == "draft" and body["automatically_finalizes_at"] is not None:
        return body["automatically_finalizes_at"], "finalises"
    if body["status"] == "open" and body["next_payment_attempt"] is not None:
        return body["next_payment_attempt"], "is charged again"
    return None
