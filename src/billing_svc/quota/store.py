"""What a decision reads, in one statement: standing and counters, for any number of accounts and meters at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import tables
from billing_svc.quota import rules, terms

# A period lasts 31 days at the most, and counts late events until half an hour after its end: what started or ended
# before this cannot matter any more. It bounds what is read, however long the history is.
HORIZON = timedelta(days=33)

_SELECT_FACTS = sa.text("""
    SELECT asked.n, newest.version,
           a.created_at, a.pay_as_you_go,
           s.subscription_id, s.status, s.plan, s.catalog_version, s.quantity, s.anchor,
           s.effective_from, s.effective_until,
           o.included, o.expires_at, o.note, o.set_by, o.set_at, g.level,
           c.period_start, c.used, c.reserved, c.billable, c.exceeded_at
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[])) WITH ORDINALITY AS asked (account_id, meter, n)
     CROSS JOIN (SELECT max(version) AS version FROM catalog_versions) AS newest
      LEFT JOIN accounts a ON a.account_id = asked.account_id
      LEFT JOIN subscriptions s ON s.account_id = asked.account_id AND s.is_plan
                               AND (s.effective_until IS NULL OR s.effective_until > :horizon)
      LEFT JOIN account_overrides o ON o.account_id = asked.account_id AND o.meter = asked.meter
      LEFT JOIN gauge_levels g ON g.account_id = asked.account_id AND g.meter = asked.meter
      LEFT JOIN usage_counters c ON c.account_id = asked.account_id AND c.meter = asked.meter
                                AND c.period_start > :horizon
""")


_ADMIT = sa.text("""
    INSERT INTO rate_windows AS w (account_id, window_start, admitted) VALUES (:account_id, :now, 1)
    ON CONFLICT (account_id) DO UPDATE
       SET window_start = CASE WHEN w.window_start <= :over_before THEN excluded.window_start ELSE w.window_start END,
           admitted = CASE WHEN w.window_start <= :over_before THEN 1 ELSE w.admitted + 1 END
     WHERE w.window_start <= :over_before OR w.admitted < :requests
""")


@dataclass(slots=True)
class Facts:
    """All that the store knows about one account and meter; counters by the start of their period."""

    standing: terms.Standing
    override: terms.Override | None
    # A gauge's present level; 0 where none was recorded, and on consumables.
    level: int
    counters: dict[datetime, rules.Counter]


async def read_facts(conn: AsyncConnection, asked: Sequence[tuple[str, str]], now: datetime) -> list[Facts]:
    """Return the facts of each (account, meter), in the order asked, from one snapshot.

    Raises LookupError if no catalog was ever published.
    """
    rows = await conn.execute(
        _SELECT_FACTS,
        {
            "account_ids": [account_id for account_id, _ in asked],
            "meters": [meter for _, meter in asked],
            "horizon": now - HORIZON,
        },
    )
    # Subscriptions times counters, a handful of rows for each one asked; keyed here, so that repeats collapse.
    facts: dict[int, Facts] = {}
    subscriptions: dict[int, dict[str, terms.Subscription]] = {}
    for row in rows:
        n, version, created_at, pay_as_you_go = row[:4]
        if version is None:
            raise LookupError("no catalog was published")
        if n not in facts:
            standing = terms.Standing(version, created_at, bool(pay_as_you_go), ())
            override = terms.Override(*row[12:17]) if row[16] is not None else None
            facts[n] = Facts(standing, override, row[17] or 0, {})
            subscriptions[n] = {}
        if row[4] is not None:
            subscriptions[n][row[4]] = terms.Subscription(*row[4:12])
        if row[18] is not None:
            facts[n].counters[row[18]] = rules.Counter(*row[19:])
    for n, held in subscriptions.items():
        facts[n].standing = replace(facts[n].standing, subscriptions=tuple(held.values()))
    return [facts[n] for n in range(1, len(asked) + 1)]


async def admit(
    conn: AsyncConnection, account_id: str, requests: int, window: timedelta, now: datetime
) -> timedelta | None:
    """Count one check against an account's rate limit of `requests` in a window, which opens with its first one.

    Returns None if it is admitted; else nothing was counted, and the answer is how long until the window is over.
    Holds across processes: the row's own lock decides.
    """
    admitted = await conn.execute(
        _ADMIT, {"account_id": account_id, "requests": requests, "now": now, "over_before": now - window}
    )
    if admitted.rowcount == 1:
        return None
    query = sa.select(tables.rate_windows.c.window_start).where(tables.rate_windows.c.account_id == account_id)
    window_start: datetime = (await conn.execute(query)).scalar_one()
    return max(timedelta(), window_start + window - now)
