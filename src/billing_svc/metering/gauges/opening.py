"""Opening a period for gauges where nothing is recorded: its peak is the level that it begins with."""

from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.gauges import store
from billing_svc.metering.quota import reading
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.usage import store as usage_store
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store

_log = structlog.get_logger(__name__)

# Opened in one transaction; the rest follows in the next round.
GAUGES_MAX = 100
# A meter may come back with the next catalog.
RETRY_UNKNOWN = timedelta(hours=1)


async def open_due(conn: AsyncConnection, catalogs: versions.CatalogCache, now: datetime) -> int:
    """Open the present period of gauges that need it, and return of how many. Opening twice changes nothing."""
    due = await store.due(conn, GAUGES_MAX, now)
    if not due:
        return 0
    # Plans change behind this lock: none may come between its terms and their mark on the gauge.
    await accounts_store.lock_shared(conn, {account_id for account_id, _ in due})
    asked = [reading.Asked(account_id, meter, "") for account_id, meter in due]
    known = {}
    for key, found in zip(due, await reading.read(conn, catalogs, asked, now), strict=True):
        # A meter that has left the catalog is nobody's any more.
        if isinstance(found, errors.BillingError):
            _log.warning("gauge_without_meter", account=key[0], meter=key[1])
        else:
            known[key] = found
    terms = {key: found.terms_at(now) for key, found in known.items()}
    keys = {key: (*key, terms[key].period.start) for key in known}
    missing = {
        keys[key]: (terms[key], found.allowance(terms[key], now))
        for key, found in known.items()
        if terms[key].period.start not in found.facts.counters
    }
    counters = await usage_store.lock_counters(conn, set(keys.values()) - missing.keys())
    ends = {key: terms[key].period.end for key in known}
    levels = await store.lock(conn, due, now)
    if missing:
        counters |= await usage_store.open_counters(conn, missing, (), now)
    written: dict[usage_store.CounterKey, usage_store.Written] = {}
    for key, found in known.items():
        allowance = found.allowance(terms[key], now)
        counter = replace(counters[keys[key]].counter, level=levels[key].level)
        written[keys[key]] = usage_store.Written(quota_rules.raise_peak(allowance, counter), terms[key], allowance)
    if written:
        await usage_store.update_counters(conn, written, now)
    # One that cannot be opened is asked about again in a while, not at once.
    await store.mark_opened(conn, {key: ends.get(key, now + RETRY_UNKNOWN) for key in due})
    return len(due)
