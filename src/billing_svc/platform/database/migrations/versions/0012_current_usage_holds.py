"""`current_usage` shows all live holds of an account and meter: they take up room in the present period (ADR 0018).

Before, it showed only the holds of the present period's counter.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Runs with its owner's rights; 0006 says why these settings are fixed. A live hold is in a counter of the last 33 days
# (`metering/quota/store.py`, HORIZON).
_RECENT_COUNTERS = """
    CREATE FUNCTION readable.recent_counters() RETURNS SETOF public.usage_counters
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET client_min_messages = error
    SET enable_seqscan = off
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    SET enable_nestloop = on
    SET enable_indexscan = on
    SET enable_indexonlyscan = on
    SET enable_bitmapscan = on
    SET jit = off
    AS $$
        SELECT stored.*
          FROM readable.account_ids() AS own (account_id)
         CROSS JOIN LATERAL (
             SELECT * FROM public.usage_counters AS t
              WHERE t.account_id = own.account_id AND now() - interval '33 days' < t.period_start
                AND t.period_start <= now()
              ORDER BY meter, period_start
         ) AS stored
    $$
"""
_CURRENT_USAGE = """
    CREATE OR REPLACE VIEW readable.current_usage WITH (security_invoker) AS
    SELECT DISTINCT ON (account_id, meter)
           account_id, meter, plan, period_start, period_end,
           coalesce(level, used) AS used, held AS reserved, included,
           round(100.0 * coalesce(level, used) / nullif(included, 0), 1) AS percent,
           coalesce(coalesce(level, used) > included, false) AS over_quota,
           billable, updated_at
      FROM (
           SELECT *, CAST(sum(reserved) OVER (PARTITION BY account_id, meter) AS bigint) AS held
             FROM readable.recent_counters()
           ) AS recent
     WHERE now() < period_end
     ORDER BY account_id, meter, period_start DESC
"""


def upgrade() -> None:
    op.execute(_RECENT_COUNTERS)
    op.execute(_CURRENT_USAGE)
    op.execute("DROP FUNCTION readable.current_counters()")
