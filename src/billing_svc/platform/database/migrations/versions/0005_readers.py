"""Roles and views for readers: people and tools that read the database directly."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reader_accounts",
        sa.Column("login", sa.Text(), nullable=False),
        sa.Column("account_prefix", sa.Text(), nullable=False),
        sa.CheckConstraint("account_prefix <> ''", name=op.f("ck_reader_accounts_named")),
        sa.PrimaryKeyConstraint("login", "account_prefix", name=op.f("pk_reader_accounts")),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at", "account_id", "entry_id"])
    # security_invoker: with the owner's rights, the view would show every account to every reader. A plan that ended
    # early leaves a counter whose period has not ended: the latest counter counts. `included` is as of the counter's
    # last write.
    op.execute("""
        CREATE VIEW current_usage WITH (security_invoker = true) AS
        SELECT DISTINCT ON (account_id, meter)
               account_id, meter, plan, period_start, period_end,
               coalesce(level, used) AS used, reserved, included,
               round(100.0 * coalesce(level, used) / nullif(included, 0), 1) AS percent,
               coalesce(coalesce(level, used) > included, false) AS over_quota,
               billable, updated_at
          FROM usage_counters
         WHERE period_start <= now() AND now() < period_end
         ORDER BY account_id, meter, period_start DESC
    """)
