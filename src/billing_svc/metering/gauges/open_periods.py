"""Opens a new period of gauges that have no events in it: stores the level as the peak, and raises the alerts.

Opens the period again when the included quantity changes within it, to raise the alerts of the new quantity.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.alerts import rules as alerts_rules
from billing_svc.metering.alerts import store as alerts_store
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.gauges import store
from billing_svc.metering.quota import lookup, terms
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store

_log = structlog.get_logger(__name__)

# How many gauges one transaction opens; the worker opens the rest in further transactions.
GAUGES_MAX = 100
# When a gauge whose meter left the catalog is looked at again: the next catalog may have the meter.
RETRY_UNKNOWN = timedelta(hours=1)


async def open_due(conn: AsyncConnection, catalogs: versions.CatalogCache, now: datetime) -> int:
    """Open the present period of gauges that need it, and return their number. A repeat changes nothing."""
    due = await store.due(conn, GAUGES_MAX, now)
    if not due:
        return 0
    # A change of plan waits for this lock, so the terms read below still hold when the gauge is marked as opened.
    await accounts_store.lock_shared(conn, {account_id for account_id, _ in due})
    asked = [lookup.MeterQuery(account_id, meter, "") for account_id, meter in due]
    known = {}
    for key, found in zip(due, await lookup.read(conn, catalogs, asked, now), strict=True):
        # A meter that has left the catalog has no terms.
        if isinstance(found, errors.BillingError):
            _log.warning("gauge_without_meter", account=key[0], meter=key[1])
        else:
            known[key] = found
    under = {key: found.terms_at(now) for key, found in known.items()}
    keys = {key: (*key, under[key].period.start) for key in known}
    missing = {
        keys[key]: (under[key], found.allowance(under[key], now))
        for key, found in known.items()
        if under[key].period.start not in found.facts.counters
    }
    counters = await counters_store.lock_counters(conn, set(keys.values()) - missing.keys())
    ends = {key: _until(found, under[key], now) for key, found in known.items()}
    levels = await store.lock(conn, due, now)
    if missing:
        counters |= await counters_store.open_counters(conn, missing, (), now)
    written: dict[counters_store.CounterKey, counters_store.CounterUpdate] = {}
    alerts: list[tuple[counters_store.CounterKey, alerts_rules.Alert]] = []
    for key, found in known.items():
        allowance = found.allowance(under[key], now)
        counter = replace(counters[keys[key]].counter, level=levels[key].level)
        after = quota_rules.raise_peak(allowance, counter)
        written[keys[key]] = counters_store.CounterUpdate(after, under[key], allowance)
        percents = under[key].catalog.alert_percents
        # All thresholds that the level has reached; an alert that was raised before stays unchanged.
        reached = alerts_rules.alerts_to_raise(percents, allowance, counter, after, is_new_allowance=True)
        alerts += [(keys[key], alert) for alert in reached]
    if written:
        await counters_store.update_counters(conn, written, now)
        await alerts_store.insert_alerts(conn, alerts, now)
    # A gauge that cannot be opened is due again after RETRY_UNKNOWN.
    await store.mark_opened(conn, {key: ends.get(key, now + RETRY_UNKNOWN) for key in due})
    return len(due)


def _until(found: lookup.MeterState, under: terms.EffectiveTerms, now: datetime) -> datetime:
    """Return when the gauge is to be looked at again: at the end of its period, or of the override in force."""
    override = found.facts.override
    expires_at = override.expires_at if override is not None and override.holds(now) else None
    return under.period.end if expires_at is None else min(under.period.end, expires_at)
