"""What a decision reads, in one statement: standing and counters, for any number of accounts and meters at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import bulk, tables
from billing_svc.quota import rules, terms

# A period lasts 31 days at the most, and counts late events until half an hour after its end: what started or ended
# before this cannot matter any more. It bounds what is read, however long the history is.
HORIZON = timedelta(days=33)

_ASKED = bulk.recordset("asked", "n integer, account_id text, meter text")

# Each table is looked into by key for each one asked: OFFSET 0 keeps the planner from reading all of it instead.
_SELECT_FACTS = sa.text(f"""
    SELECT asked.n, newest.version,
           a.created_at, a.pay_as_you_go,
           s.subscription_id, s.status, s.plan, s.catalog_version, s.quantity, s.anchor,
           s.effective_from, s.effective_until,
           o.included, o.expires_at, o.note, o.set_by, o.set_at, g.level,
           w.window_start, w.admitted,
           c.period_start, c.used, c.reserved - coalesce(over.units, 0), c.billable, c.exceeded_at
      FROM {_ASKED}
     CROSS JOIN (SELECT max(version) AS version FROM catalog_versions) AS newest
      LEFT JOIN LATERAL (SELECT * FROM accounts a WHERE a.account_id = asked.account_id OFFSET 0) AS a ON TRUE
      LEFT JOIN LATERAL (
           SELECT * FROM subscriptions s
            WHERE s.account_id = asked.account_id AND s.is_plan
              AND (s.effective_until IS NULL OR s.effective_until > :horizon) OFFSET 0
           ) AS s ON TRUE
      LEFT JOIN LATERAL (
           SELECT * FROM account_overrides o
            WHERE o.account_id = asked.account_id AND o.meter = asked.meter OFFSET 0
           ) AS o ON TRUE
      LEFT JOIN LATERAL (
           SELECT * FROM gauge_levels g WHERE g.account_id = asked.account_id AND g.meter = asked.meter OFFSET 0
           ) AS g ON TRUE
      LEFT JOIN LATERAL (SELECT * FROM rate_windows w WHERE w.account_id = asked.account_id OFFSET 0) AS w ON TRUE
      LEFT JOIN LATERAL (
           SELECT * FROM usage_counters c
            WHERE c.account_id = asked.account_id AND c.meter = asked.meter AND c.period_start > :horizon OFFSET 0
           ) AS c ON TRUE
      -- Holds whose time is over do not stand in the way, whether or not they were swept.
      LEFT JOIN LATERAL (
           SELECT CAST(sum(r.units) AS bigint) AS units
             FROM reservations r
            WHERE c.reserved > 0 AND r.state = 'held' AND r.expires_at <= :now
              AND (r.account_id, r.meter, r.period_start) = (c.account_id, c.meter, c.period_start)
           ) AS over ON TRUE
""")  # noqa: S608 - constants of this file


# In key order, so that processes cannot deadlock. What was there before the update is what the lock found.
_ADMIT = sa.text("""
    UPDATE rate_windows w
       SET window_start = CASE WHEN old.is_over THEN :now ELSE old.window_start END,
           admitted = CASE WHEN old.is_over THEN least(old.wanted, old.requests)
                           ELSE greatest(old.admitted, least(old.admitted + old.wanted, old.requests)) END
      FROM (SELECT r.account_id, r.window_start, r.admitted, asked.wanted, asked.requests,
                   r.window_start <= asked.over_before AS is_over
              FROM unnest(CAST(:account_ids AS text[]), CAST(:wanted AS bigint[]), CAST(:requests AS bigint[]),
                          CAST(:over_before AS timestamptz[])) AS asked (account_id, wanted, requests, over_before)
              JOIN rate_windows r USING (account_id)
             ORDER BY r.account_id
               FOR UPDATE OF r) AS old
     WHERE w.account_id = old.account_id
    RETURNING w.account_id, w.admitted - CASE WHEN old.is_over THEN 0 ELSE old.admitted END, w.window_start
""")


@dataclass(slots=True)
class Facts:
    """All that the store knows about one account and meter; counters by the start of their period."""

    standing: terms.Standing
    override: terms.Override | None
    # A gauge's present level; 0 where none was recorded, and on consumables.
    level: int
    window: rules.Window | None
    counters: dict[datetime, rules.Counter]


async def read_facts(conn: AsyncConnection, asked: Sequence[tuple[str, str]], now: datetime) -> list[Facts]:
    """Return the facts of each (account, meter), in the order asked, from one snapshot.

    Raises LookupError if no catalog was ever published.
    """
    rows = await conn.execute(
        _SELECT_FACTS,
        {
            **bulk.to_rows(
                [{"n": n, "account_id": account_id, "meter": meter} for n, (account_id, meter) in enumerate(asked)]
            ),
            "horizon": now - HORIZON,
            "now": now,
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
            window = rules.Window(*row[18:20]) if row[18] is not None else None
            facts[n] = Facts(standing, override, row[17] or 0, window, {})
            subscriptions[n] = {}
        if row[4] is not None:
            subscriptions[n][row[4]] = terms.Subscription(*row[4:12])
        if row[20] is not None:
            facts[n].counters[row[20]] = rules.Counter(*row[21:])
    for n, held in subscriptions.items():
        facts[n].standing = replace(facts[n].standing, subscriptions=tuple(held.values()))
    return [facts[n] for n in range(len(asked))]


async def admit(
    conn: AsyncConnection, wanted: Mapping[str, rules.Requests], now: datetime
) -> dict[str, tuple[int, datetime]]:
    """Count checks against rate limits; returns how many of each account's were admitted, and when its window opened.

    Holds across processes: the row's own lock decides. One statement for all, and one more for accounts that never had
    a window.
    """
    new = [account_id for account_id, one in wanted.items() if one.is_first]
    if new:
        await conn.execute(
            postgresql.insert(tables.rate_windows).on_conflict_do_nothing(),
            [{"account_id": account_id, "window_start": now, "admitted": 0} for account_id in sorted(new)],
        )
    rows = await conn.execute(
        _ADMIT,
        {
            "now": now,
            "account_ids": list(wanted),
            "wanted": [one.number for one in wanted.values()],
            "requests": [one.limit.requests for one in wanted.values()],
            "over_before": [now - one.limit.window for one in wanted.values()],
        },
    )
    return {account_id: (admitted, window_start) for account_id, admitted, window_start in rows}
