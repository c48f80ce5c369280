"""What a decision reads, in one statement: standing and counters, for any number of accounts and meters at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.quota import rules, terms

# A period lasts 31 days at the most, and counts late events until half an hour after its end: what started or ended
# before this cannot matter any more. It bounds what is read, however long the history is.
HORIZON = timedelta(days=33)

_SELECT_FACTS = sa.text("""
    SELECT asked.n, newest.version,
           a.created_at, a.pay_as_you_go,
           s.subscription_id, s.status, s.plan, s.catalog_version, s.quantity, s.anchor,
           s.effective_from, s.effective_until,
           c.period_start, c.used, c.reserved, c.billable, c.exceeded_at
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[])) WITH ORDINALITY AS asked (account_id, meter, n)
     CROSS JOIN (SELECT max(version) AS version FROM catalog_versions) AS newest
      LEFT JOIN accounts a ON a.account_id = asked.account_id
      LEFT JOIN subscriptions s ON s.account_id = asked.account_id AND s.is_plan
                               AND (s.effective_until IS NULL OR s.effective_until > :horizon)
      LEFT JOIN usage_counters c ON c.account_id = asked.account_id AND c.meter = asked.meter
                                AND c.period_start > :horizon
""")


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the store knows about one account and meter; counters by the start of their period."""

    standing: terms.Standing
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
    newest: dict[int, int] = {}
    account: dict[int, tuple[datetime | None, bool]] = {}
    subscriptions: dict[int, dict[str, terms.Subscription]] = {}
    counters: dict[int, dict[datetime, rules.Counter]] = {}
    for n, version, created_at, pay_as_you_go, *rest in rows:
        if version is None:
            raise LookupError("no catalog was published")
        newest[n] = version
        account[n] = (created_at, bool(pay_as_you_go))
        if rest[0] is not None:
            subscriptions.setdefault(n, {})[rest[0]] = terms.Subscription(*rest[:8])
        if rest[8] is not None:
            counters.setdefault(n, {})[rest[8]] = rules.Counter(*rest[9:])
    return [
        Facts(
            terms.Standing(newest[n], *account[n], tuple(subscriptions.get(n, {}).values())),
            counters.get(n, {}),
        )
        for n in range(1, len(asked) + 1)
    ]
