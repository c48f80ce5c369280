"""The readers' functions, which return the rows of a login's accounts, and the views on them. See ADR 0014."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The tables with an account, each with the rest of its primary key.
_TABLES = {
    "account_overrides": "meter",
    "accounts": "account_id",
    "audit_log": "entry_id",
    "gauge_levels": "meter",
    "invoices": "invoice_id",
    "rate_windows": "account_id",
    "reservations": "reservation_id",
    "subscriptions": "subscription_id",
    "usage_alerts": "meter, period_start, threshold_percent, included",
    "usage_counters": "meter, period_start",
    "usage_events": "event_id",
    "usage_reports": "report_id",
}
# These functions run with their owner's rights, so they fix the settings that a session could misuse: the search path,
# which decides which tables are read; the planner's settings, because a read that does not go by key takes time that
# reveals a table's size; and client_min_messages, because `debug_print_plan` sends plans with the planner's estimates.
_AS_OWNER = """
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
"""
# A prefix works as callers' prefixes do (api/scope.py): it opens the account with that id and the accounts below it
# (org_1 opens org_1 and org_1/eu, not org_10). A prefix that ends in a separator opens every id that begins with it.
# The comparisons are by bytes, so the database's locale does not matter. The prefix itself is returned as an id, so
# that the account needs no row in `accounts`.
_ACCOUNT_IDS = """
    WITH mapped AS (
        SELECT account_prefix AS prefix FROM public.reader_accounts WHERE login = CAST(session_user AS text)
    ), beginnings AS (
        SELECT unnest(CASE WHEN right(prefix, 1) IN (':', '/', '.', '-', '_', '|') THEN ARRAY[prefix]
                           ELSE ARRAY[prefix || ':', prefix || '/'] END) AS beginning
          FROM mapped
    )
    SELECT prefix FROM mapped
     UNION
    SELECT a.account_id
      FROM beginnings
      JOIN public.accounts AS a
        ON a.account_id ~>=~ beginning
       AND a.account_id ~<~ (left(beginning, -1) || chr(ascii(right(beginning, 1)) + 1))
     UNION
    SELECT account_id FROM public.accounts WHERE pg_has_role(session_user, 'billing_admin', 'MEMBER')
     ORDER BY 1
"""
# `included` is as of the counter's last write. A plan that ended early leaves a counter whose period has not ended: the
# latest counter counts.
_CURRENT_USAGE = """
    SELECT DISTINCT ON (account_id, meter)
           account_id, meter, plan, period_start, period_end,
           coalesce(level, used) AS used, reserved, included,
           round(100.0 * coalesce(level, used) / nullif(included, 0), 1) AS percent,
           coalesce(coalesce(level, used) > included, false) AS over_quota,
           billable, updated_at
      FROM readable.current_counters()
     ORDER BY account_id, meter, period_start DESC
"""
# All columns except the URLs of the pages where the invoice can be paid.
_INVOICE = {
    "account_id": "text",
    "invoice_id": "text",
    "subscription_id": "text",
    "customer_id": "text",
    "number": "text",
    "status": "text",
    "currency": "text",
    "total": "bigint",
    "amount_due": "bigint",
    "amount_paid": "bigint",
    "attempt_count": "integer",
    "next_payment_attempt_at": "timestamptz",
    "due_at": "timestamptz",
    "paid_at": "timestamptz",
    "period_start": "timestamptz",
    "period_end": "timestamptz",
    "lines": "jsonb",
    "more_lines": "boolean",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
}


def upgrade() -> None:
    # In byte order, which finds the accounts below an account in any locale of the database.
    pattern = {"account_id": "text_pattern_ops"}
    op.create_index("ix_accounts_prefix", "accounts", ["account_id"], postgresql_ops=pattern)
    op.execute("CREATE SCHEMA readable")
    _create_function("account_ids", "SETOF text", _ACCOUNT_IDS)
    for table in _TABLES:
        if table == "invoices":
            returned = ", ".join(f"{name} {kind}" for name, kind in _INVOICE.items())
            _create_function(table, f"TABLE ({returned})", _by_account(table, columns=", ".join(_INVOICE)))
        else:
            _create_function(table, f"SETOF public.{table}", _by_account(table))
        _create_view(f"readable.{table}", f"SELECT * FROM readable.{table}()")  # noqa: S608 - names of this file
    current = _by_account("usage_counters", "period_start <= now() AND now() < period_end")
    _create_function("current_counters", "SETOF public.usage_counters", current)
    _create_view("readable.current_usage", _CURRENT_USAGE)
    op.execute("DROP VIEW current_usage")
    own = "SELECT * FROM public.reader_accounts WHERE login = CAST(session_user AS text) ORDER BY account_prefix"
    _create_function("reader_accounts", "SETOF public.reader_accounts", own)
    _create_view("readable.reader_accounts", "SELECT * FROM readable.reader_accounts()")
    catalogs = "SELECT * FROM public.catalog_versions ORDER BY version"
    _create_function("catalog_versions", "SETOF public.catalog_versions", catalogs)
    _create_view("readable.catalog_versions", "SELECT * FROM readable.catalog_versions()")
    # privileges.py creates these policies again, with `account_ids`. Dropped last, because DROP POLICY locks a table
    # against readers until the end of the transaction.
    for table in _TABLES:
        op.execute(f"DROP POLICY IF EXISTS billing_reader ON {table}")


def _by_account(table: str, condition: str = "true", columns: str = "*") -> str:
    # Rows are read account by account, in the order of the primary key. Otherwise the planner would choose the order,
    # and its choice would reveal what it knows of other accounts.
    return f"""
        SELECT stored.*
          FROM readable.account_ids() AS own (account_id)
         CROSS JOIN LATERAL (
             SELECT {columns} FROM public.{table} AS t
              WHERE t.account_id = own.account_id AND {condition}
              ORDER BY {_TABLES[table]}
         ) AS stored
    """  # noqa: S608 - names of this file


def _create_function(name: str, returns: str, body: str) -> None:
    op.execute(f"CREATE FUNCTION readable.{name}() RETURNS {returns} {_AS_OWNER} AS $${body}$$")


def _create_view(name: str, query: str) -> None:
    op.execute(f"CREATE VIEW {name} WITH (security_invoker) AS {query}")
