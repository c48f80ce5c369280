"""Reads account states and counters for decisions, in one statement for any number of accounts and meters."""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import rules, terms
from billing_svc.platform.database import bulk, direct, select_list, tables

# A period lasts 31 days at the most, takes late events until half an hour after its end, and its holds end within a day
# of it, so periods and subscriptions that ended earlier are not needed. The horizon bounds the rows that a decision
# reads, however long the history is.
HORIZON = timedelta(days=33)

_ASKED = bulk.arrays("asked", "n integer, account_id text, meter text")
_ASKED_ALONE = "(SELECT 0 AS n, CAST(:account_id AS text) AS account_id, CAST(:meter AS text) AS meter) AS asked"

_WANTED = "account_id text, wanted bigint, requests bigint, over_before timestamptz"

# The columns of an account that every decision reads, and their places in a row.
_ACCOUNT_STATE = select_list.SelectList()
_N = _ACCOUNT_STATE.add("asked.n")
_ACCOUNT = _ACCOUNT_STATE.add_fields(
    terms.AccountState,
    "a",
    newest_catalog="(SELECT max(version) FROM catalog_versions)",
    # `_facts` fills these from all rows of the account: each subscription has its own row.
    without=("subscriptions", "metered_only"),
)
_NEWEST_CATALOG = _ACCOUNT_STATE.index("(SELECT max(version) FROM catalog_versions)")
_SUBSCRIPTION = _ACCOUNT_STATE.add_fields(terms.PlanSubscription, "s")
_SINCE = _ACCOUNT_STATE.index("s.since")
_IS_PLAN = _ACCOUNT_STATE.add("s.is_plan")
_HISTORY_UNTIL = _ACCOUNT_STATE.add("a.history_until")
_OVERRIDE = _ACCOUNT_STATE.add_fields(terms.Override, "o")
_SUBSCRIPTION_ID, _OVERRIDE_SET_AT = (_ACCOUNT_STATE.index(name) for name in ("s.subscription_id", "o.set_at"))

# Past stretches are read only if a move lies within the horizon: by another statement, because this table alone would
# add a fifth to the time of every decision.
_HISTORY = """
            UNION ALL
           SELECT subscription_id, status, plan, catalog_version, quantity, anchor, effective_from,
                  since, effective_until, overage_denied_from, '' AS missing_meters, is_plan
             FROM subscription_history
            WHERE account_id = asked.account_id AND is_plan AND effective_until > :horizon
"""


def _account_state_tables(history: str) -> str:
    """Return the tables of an account's state.

    Each table is read by key for each question; without OFFSET 0 the planner might read the whole table. Only the
    needed columns are named: preparing a whole row takes longer than finding it.
    """
    return f"""
      LEFT JOIN LATERAL (
           SELECT created_at, pay_as_you_go_under, history_until
             FROM accounts
            WHERE account_id = asked.account_id OFFSET 0
           ) AS a ON TRUE
      LEFT JOIN LATERAL (
           SELECT subscription_id, status, plan, catalog_version, quantity, anchor, effective_from,
                  coalesce(moved_at, effective_from) AS since, effective_until, overage_denied_from, missing_meters,
                  is_plan
             FROM subscriptions
            WHERE account_id = asked.account_id AND (is_plan OR subscription_id = a.pay_as_you_go_under)
              AND (effective_until IS NULL OR effective_until > :horizon)
            {history}
           OFFSET 0
           ) AS s ON TRUE
      LEFT JOIN LATERAL (
           SELECT included, expires_at, note, set_by, set_at
             FROM account_overrides
            WHERE account_id = asked.account_id AND meter = asked.meter OFFSET 0
           ) AS o ON TRUE
    """  # noqa: S608 - constants of this file


_ACCOUNT_STATE_TABLES = _account_state_tables("")
_ACCOUNT_STATE_WITH_HISTORY_TABLES = _account_state_tables(_HISTORY)


@functools.cache
def _select_account_states(*, is_alone: bool, history: bool) -> direct.PreparedStatement:
    """Return the statement that reads states; a single question goes without an array, and takes a tenth less time."""
    return direct.PreparedStatement(f"""
        SELECT {_ACCOUNT_STATE}
          FROM {_ASKED_ALONE if is_alone else _ASKED}
               {_ACCOUNT_STATE_WITH_HISTORY_TABLES if history else _ACCOUNT_STATE_TABLES}
    """)  # noqa: S608 - constants of this file


_LEVELS = """
      LEFT JOIN LATERAL (
           SELECT level FROM gauge_levels WHERE account_id = asked.account_id AND meter = asked.meter OFFSET 0
           ) AS g ON TRUE
"""
_NO_LEVELS = "CROSS JOIN (SELECT CAST(NULL AS bigint) AS level) AS g"
_WINDOWS = """
      LEFT JOIN LATERAL (
           SELECT window_start, admitted FROM rate_windows WHERE account_id = asked.account_id OFFSET 0
           ) AS w ON TRUE
"""
_NO_WINDOWS = "CROSS JOIN (SELECT CAST(NULL AS timestamptz) AS window_start, CAST(NULL AS integer) AS admitted) AS w"


# Holds whose time is over take up no room, whether or not they were swept.
_RESERVED = """
    CASE WHEN c.reserved = 0 THEN 0
         ELSE c.reserved - (
              SELECT CAST(coalesce(sum(units), 0) AS bigint)
                FROM reservations
               WHERE state = 'held' AND expires_at <= :now
                 AND account_id = asked.account_id AND meter = asked.meter AND period_start = c.period_start
              ) END
"""
# The columns that follow those of `_ACCOUNT_STATE` in statements that also read usage.
_FACTS = _ACCOUNT_STATE.copy()
_LEVEL = _FACTS.add("g.level")
_WINDOW = _FACTS.add_fields(rules.RateWindow, "w", start="w.window_start")
_PERIOD_START = _FACTS.add("c.period_start")
# A gauge's level is not stored in its counters, but in a table of its own.
_COUNTER = _FACTS.add_fields(rules.Counter, "c", without=("level",), reserved=_RESERVED)
_WINDOW_START = _FACTS.index("w.window_start")


@functools.cache
def _select_facts(*, is_alone: bool, levels: bool, windows: bool, history: bool) -> direct.PreparedStatement:
    """Return the statement that reads facts, with levels and windows if asked: each adds a tenth to its time."""
    return direct.PreparedStatement(f"""
        SELECT {_FACTS}
          FROM {_ASKED_ALONE if is_alone else _ASKED}
               {_ACCOUNT_STATE_WITH_HISTORY_TABLES if history else _ACCOUNT_STATE_TABLES}
               {_LEVELS if levels else _NO_LEVELS}
               {_WINDOWS if windows else _NO_WINDOWS}
          LEFT JOIN LATERAL (
               SELECT period_start, used, reserved, billable, exceeded_at
                 FROM usage_counters
                WHERE account_id = asked.account_id AND meter = asked.meter AND period_start > :horizon OFFSET 0
               ) AS c ON TRUE
    """)  # noqa: S608 - constants of this file


# In key order, so that processes cannot deadlock. `old` is the row as the lock found it, before the update.
_ADMIT = direct.PreparedStatement(f"""
    UPDATE rate_windows w
       SET window_start = CASE WHEN old.is_over THEN CAST(:now AS timestamptz) ELSE old.window_start END,
           admitted = CASE WHEN old.is_over THEN least(old.wanted, old.requests)
                           ELSE greatest(old.admitted, least(old.admitted + old.wanted, old.requests)) END
      FROM (SELECT r.account_id, r.window_start, r.admitted, asked.wanted, asked.requests,
                   r.window_start <= asked.over_before AS is_over
              FROM {bulk.recordset("asked", _WANTED)}
              JOIN rate_windows r USING (account_id)
             ORDER BY r.account_id
               FOR UPDATE OF r) AS old
     WHERE w.account_id = old.account_id
    RETURNING w.account_id, w.admitted - CASE WHEN old.is_over THEN 0 ELSE old.admitted END, w.window_start
""")  # noqa: S608 - constants of this file
_SELECT_WINDOWS = direct.PreparedStatement(f"""
    SELECT asked.account_id, w.window_start, w.admitted
      FROM {bulk.arrays("asked", "account_id text")}
     CROSS JOIN LATERAL (
           SELECT window_start, admitted FROM rate_windows WHERE account_id = asked.account_id OFFSET 0
           ) AS w
""")  # noqa: S608 - constants of this file
_OPEN_WINDOWS = direct.PreparedStatement(
    bulk.insert_missing(tables.rate_windows, ("account_id", "window_start", "admitted")).text
)
# The commit of a transaction that begins with this statement does not wait for the disk.
_WITHOUT_WAITING = direct.PreparedStatement("SELECT set_config('synchronous_commit', 'off', true)")


@dataclass(slots=True)
class MeterFacts:
    """The stored facts of an account and meter; counters by the start of their period."""

    account_state: terms.AccountState
    override: terms.Override | None
    # A gauge's present level; 0 if none was recorded, and of consumables.
    level: int
    window: rules.RateWindow | None
    counters: dict[datetime, rules.Counter]
    # The units of all live holds: they take up room in the present period, whichever period they were made in.
    held: int = 0


async def read_facts(
    conn: AsyncConnection,
    asked: Sequence[tuple[str, str]],
    now: datetime,
    *before: direct.Call,
    levels: bool,
    windows: bool,
) -> tuple[list[MeterFacts], list[list[direct.Row]]]:
    """Return the facts of each (account, meter), in the order asked, from one snapshot.

    Also returns the rows of `before`, statements that run first in the same round trip; if they lock rows, no other
    transaction changes these facts until the end of this transaction. Without `levels` the level of a gauge is 0,
    without `windows` no rate window is returned. Raises LookupError if no catalog was ever published.
    """
    is_alone, parameters = len(asked) == 1, _parameters(asked, now)
    statement = _select_facts(is_alone=is_alone, levels=levels, windows=windows, history=False)
    *others, found = await direct.fetch_each(conn, *before, (statement, parameters))
    if _has_history(found, now):
        statement = _select_facts(is_alone=is_alone, levels=levels, windows=windows, history=True)
        found = await direct.fetch(conn, statement, parameters)
    return _each(len(asked), found), others


async def read_account_states(
    conn: AsyncConnection, asked: Sequence[tuple[str, str]], now: datetime, *beside: direct.Call
) -> tuple[list[MeterFacts], list[list[direct.Row]]]:
    """Return facts without counters, levels and windows, and the rows of other statements of the same round trip."""
    is_alone, parameters = len(asked) == 1, _parameters(asked, now)
    statement = _select_account_states(is_alone=is_alone, history=False)
    found, *others = await direct.fetch_each(conn, (statement, parameters), *beside)
    if _has_history(found, now):
        found = await direct.fetch(conn, _select_account_states(is_alone=is_alone, history=True), parameters)
    return _each(len(asked), found), others


def _has_history(rows: Sequence[direct.Row], now: datetime) -> bool:
    """Say whether a past stretch of an account lies within the horizon: then all is read again, with the history."""
    horizon = now - HORIZON
    return any(row[_HISTORY_UNTIL] is not None and row[_HISTORY_UNTIL] > horizon for row in rows)


def _parameters(asked: Sequence[tuple[str, str]], now: datetime) -> dict[str, direct.Value]:
    if len(asked) == 1:
        account_id, meter = asked[0]
        return {"account_id": account_id, "meter": meter, "horizon": now - HORIZON, "now": now}
    rows = [(n, account_id, meter) for n, (account_id, meter) in enumerate(asked)]
    return {**bulk.to_arrays(("n", "account_id", "meter"), rows), "horizon": now - HORIZON, "now": now}


def _each(number: int, rows: Sequence[direct.Row]) -> list[MeterFacts]:
    if number == 1:
        return [_facts(rows)]
    by_asked: list[list[direct.Row]] = [[] for _ in range(number)]
    for row in rows:
        by_asked[row[_N]].append(row)
    return [_facts(found) for found in by_asked]


def _facts(rows: Sequence[direct.Row]) -> MeterFacts:
    """Return the facts in a question's rows: a row for each pair of a subscription (or past stretch) and a counter."""
    first = rows[0]
    if first[_NEWEST_CATALOG] is None:
        raise LookupError("no catalog was published")
    metered_only = None
    if len(rows) == 1 and first[_IS_PLAN]:  # the usual case
        subscriptions: tuple[terms.PlanSubscription, ...] = (terms.PlanSubscription(*first[_SUBSCRIPTION]),)
    else:
        plans = {(row[_SUBSCRIPTION_ID], row[_SINCE]): row[_SUBSCRIPTION] for row in rows if row[_IS_PLAN]}
        subscriptions = tuple([terms.PlanSubscription(*columns) for columns in plans.values()])
        metered_only = next(
            (terms.PlanSubscription(*row[_SUBSCRIPTION]) for row in rows if row[_IS_PLAN] is False), None
        )
    account_state = terms.AccountState(*first[_ACCOUNT], subscriptions, metered_only)  # type: ignore[call-arg]  # the slice is of three
    override = None if first[_OVERRIDE_SET_AT] is None else terms.Override(*first[_OVERRIDE])
    if len(first) == len(_ACCOUNT_STATE):
        return MeterFacts(account_state, override, 0, None, {})
    counters = {row[_PERIOD_START]: rules.Counter(*row[_COUNTER]) for row in rows if row[_PERIOD_START] is not None}
    return MeterFacts(
        account_state,
        override,
        level=first[_LEVEL] or 0,
        window=None if first[_WINDOW_START] is None else rules.RateWindow(*first[_WINDOW]),
        counters=counters,
        held=sum([counter.reserved for counter in counters.values()]),
    )


async def read_windows(conn: AsyncConnection, account_ids: Collection[str]) -> dict[str, rules.RateWindow]:
    """Return the accounts' rate windows by account, without locks; an account without a window is left out."""
    asked = bulk.to_arrays(("account_id",), [(account_id,) for account_id in account_ids])
    rows = await direct.fetch(conn, _SELECT_WINDOWS, asked)
    return {account_id: rules.RateWindow(*window) for account_id, *window in rows}


async def admit(
    conn: AsyncConnection, wanted: Mapping[str, rules.RateRequests], now: datetime
) -> dict[str, tuple[int, datetime]]:
    """Count checks against rate limits; returns for each account how many were admitted, and when its window opened.

    Processes cannot admit too many together: the row is locked. One round trip for all accounts.
    """
    return _admitted((await direct.fetch_each(conn, *_admissions(wanted, now)))[-1])


async def admit_at_once(
    conn: AsyncConnection, wanted: Mapping[str, rules.RateRequests], now: datetime
) -> dict[str, tuple[int, datetime]]:
    """Do the same as `admit`, in a transaction of its own.

    The commit does not wait for the disk: if the database's machine crashes, the latest checks may be lost. If the
    connection is lost during the call, a repeat may count the checks twice.
    """
    return _admitted((await direct.fetch_each(conn, (_WITHOUT_WAITING, {}), *_admissions(wanted, now)))[-1])


def _admissions(wanted: Mapping[str, rules.RateRequests], now: datetime) -> list[direct.Call]:
    rows = [
        {
            "account_id": account_id,
            "wanted": one.number,
            "requests": one.limit.requests,
            "over_before": now - one.limit.window,
        }
        for account_id, one in wanted.items()
    ]
    admit: direct.Call = _ADMIT, {**bulk.to_rows(rows), "now": now}
    new = sorted(account_id for account_id, one in wanted.items() if one.is_first)
    if not new:
        return [admit]
    windows = [{"account_id": account_id, "window_start": now, "admitted": 0} for account_id in new]
    return [(_OPEN_WINDOWS, bulk.to_rows(windows)), admit]


def _admitted(rows: Sequence[direct.Row]) -> dict[str, tuple[int, datetime]]:
    return {account_id: (admitted, window_start) for account_id, admitted, window_start in rows}
