"""Usage reports can be written off, and invoices have what was paid back, disputed and revised.

A server of the version before stores no invoice's revision and no line's item; the next event or `reconcile` fills
them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_STATE = "state IN ('sealed', 'late', 'itemised', 'sent', 'invoiced', 'failed', 'void', 'written_off', 'paid_back')"
# As in migration 0006, with the new columns.
_COLUMNS = {
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
    "amount_credited": "bigint",
    "amount_refunded": "bigint",
    "dispute_status": "text",
    "latest_revision_id": "text",
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


def upgrade() -> None:
    op.drop_constraint(op.f("ck_usage_reports_state"), "usage_reports")
    op.create_check_constraint(op.f("ck_usage_reports_state"), "usage_reports", _STATE)
    for name in ("amount_credited", "amount_refunded"):
        op.add_column("invoices", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("invoices", sa.Column("dispute_status", sa.Text()))
    op.add_column("invoices", sa.Column("latest_revision_id", sa.Text()))
    op.execute("DROP VIEW readable.invoices")
    op.execute("DROP FUNCTION readable.invoices()")
    returned = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    op.execute(f"""
        CREATE FUNCTION readable.invoices() RETURNS TABLE ({returned}) {_AS_OWNER} AS $$
        SELECT stored.*
          FROM readable.account_ids() AS own (account_id)
         CROSS JOIN LATERAL (
             SELECT {", ".join(_COLUMNS)} FROM public.invoices AS t
              WHERE t.account_id = own.account_id
              ORDER BY account_id, invoice_id
         ) AS stored
        $$
    """)  # noqa: S608 - names of this file
    op.execute("CREATE VIEW readable.invoices WITH (security_invoker) AS SELECT * FROM readable.invoices()")
