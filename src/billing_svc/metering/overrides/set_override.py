"""Setting and removing overrides, once for each request id, which is remembered by the audit row."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.overrides import rules, store
from billing_svc.metering.quota import terms
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions

_SET, _REMOVE = "set_override", "remove_override"


async def set_override(
    conn: AsyncConnection, catalogs: versions.CatalogCache, setting: rules.OverrideSetting, now: datetime
) -> terms.Override:
    """Set an override and return it; a repeat returns the first call's override, and changes nothing.

    Raises MeterNotFound, RequestIdReused, and InvalidRequest on an expiry that has passed.
    """
    await accounts_store.insert_missing(conn, {setting.account_id}, now)
    # Locked before the request id is looked up: of two equal concurrent calls, the second then finds the first's row.
    await store.lock_account(conn, setting.account_id)
    override = terms.Override(setting.included, setting.expires_at, setting.note, setting.caller, now)
    earlier = await audit_store.find_request(conn, setting.account_id, setting.request_id)
    if earlier is not None:
        first = _from_json(earlier.changes["after"])
        if first is None or (_SET, setting.meter, _content(override)) != (
            earlier.action,
            earlier.changes["meter"],
            _content(first),
        ):
            raise _reused(setting.request_id)
        return first
    await _check(conn, catalogs, setting, now)
    before = await store.find(conn, setting.account_id, setting.meter)
    await store.save(conn, setting.account_id, setting.meter, override)
    # Makes the worker check whether a gauge's level has reached thresholds of the new quantity.
    await gauges_store.reopen(conn, setting.account_id, now)
    await _audit(conn, _SET, setting, before, override, now)
    return override


async def remove_override(conn: AsyncConnection, removal: rules.OverrideRemoval, now: datetime) -> terms.Override:
    """Remove the override that is in force and return it; a repeat returns the override that the first call removed.

    Raises OverrideNotFound and RequestIdReused.
    """
    await store.lock_account(conn, removal.account_id)
    earlier = await audit_store.find_request(conn, removal.account_id, removal.request_id)
    if earlier is not None:
        removed = _from_json(earlier.changes["before"])
        if removed is None or (_REMOVE, removal.meter) != (earlier.action, earlier.changes["meter"]):
            raise _reused(removal.request_id)
        return removed
    before = await store.find(conn, removal.account_id, removal.meter)
    if before is None or not before.holds(now):
        message = f"meter: the account has no override on {removal.meter!r}"
        raise errors.OverrideNotFound(message, {"account_id": removal.account_id, "meter": removal.meter})
    await store.delete(conn, removal.account_id, removal.meter)
    await gauges_store.reopen(conn, removal.account_id, now)
    await _audit(conn, _REMOVE, removal, before, None, now)
    return before


async def _check(
    conn: AsyncConnection, catalogs: versions.CatalogCache, setting: rules.OverrideSetting, now: datetime
) -> None:
    """Raise the error of an invalid setting. The newest catalog decides, even if another process published it."""
    version = await versions.newest_published(conn)
    if setting.meter not in (await catalogs.get(conn, version)).meters:
        raise errors.MeterNotFound(f"meter: the catalog has no meter {setting.meter!r}", {"meter": setting.meter})
    if setting.expires_at is not None and setting.expires_at <= now:
        problem = f"must lie in the future (it is {now.isoformat()})"
        raise errors.InvalidRequest([errors.FieldViolation("expires_at", problem)])


async def _audit(
    conn: AsyncConnection,
    action: str,
    asked: rules.OverrideSetting | rules.OverrideRemoval,
    before: terms.Override | None,
    after: terms.Override | None,
    now: datetime,
) -> None:
    origin = audit_store.Origin(f"caller:{asked.caller}", asked.request_id)
    changes = {"meter": asked.meter, "before": _to_json(before), "after": _to_json(after)}
    if not await audit_store.append_once(conn, origin, asked.account_id, action, changes, now):
        # Another transaction stored this request id first: the account did not exist yet, so no row was locked.
        raise transactions.RetryTransaction


def _reused(request_id: str) -> errors.RequestIdReused:
    message = f"request_id: {request_id!r} was used with other content"
    return errors.RequestIdReused(message, {"request_id": request_id})


def _content(override: terms.Override) -> tuple[int | None, datetime | None, str]:
    """Return the content that a repeat of the same request id must have."""
    return (override.included, override.expires_at, override.note)


def _to_json(override: terms.Override | None) -> dict[str, object] | None:
    if override is None:
        return None
    return {
        # None: unlimited.
        "included": override.included,
        "expires_at": None if override.expires_at is None else override.expires_at.isoformat(),
        "note": override.note,
        "set_by": override.set_by,
        "set_at": override.set_at.isoformat(),
    }


def _from_json(stored: Mapping[str, Any] | None) -> terms.Override | None:
    if stored is None:
        return None
    expires_at = stored["expires_at"]
    return terms.Override(
        included=stored["included"],
        expires_at=None if expires_at is None else datetime.fromisoformat(expires_at),
        note=stored["note"],
        set_by=stored["set_by"],
        set_at=datetime.fromisoformat(stored["set_at"]),
    )
