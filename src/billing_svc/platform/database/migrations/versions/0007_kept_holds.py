"""Holds keep their first answer with its terms, and events the part that was counted under a hold's terms.

All of it may be missing: of holds and events from before, and of those that a server of the version before writes.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    for column in (
        sa.Column("period_end", _INSTANT),
        sa.Column("plan", sa.Text()),
        sa.Column("catalog_version", sa.Integer()),
        sa.Column("quantity", sa.BigInteger()),
        sa.Column("pay_as_you_go", sa.Boolean()),
        sa.Column("past_due", sa.Boolean()),
        sa.Column("included", sa.BigInteger()),
        sa.Column("overridden", sa.Boolean()),
        sa.Column("used", sa.BigInteger()),
        sa.Column("reserved", sa.BigInteger()),
        sa.Column("billable", sa.BigInteger()),
        sa.Column("remaining", sa.BigInteger()),
        sa.Column("reason", sa.Text()),
        sa.Column("units_beyond", sa.BigInteger()),
        sa.Column("projected_cost", sa.Numeric()),
        sa.Column("grace_ends_at", _INSTANT),
    ):
        op.add_column("reservations", column)
    for column in (
        sa.Column("held_plan", sa.Text()),
        sa.Column("held_catalog_version", sa.Integer()),
        sa.Column("held_billable", sa.BigInteger()),
    ):
        op.add_column("usage_events", column)
    op.create_index(
        "ix_usage_events_held",
        "usage_events",
        ["account_id", "meter", "period_start"],
        postgresql_where=sa.text("held_plan IS NOT NULL"),
    )
    for table in ("reservations", "usage_events"):
        op.execute(
            f"CREATE OR REPLACE VIEW readable.{table} WITH (security_invoker) AS SELECT * FROM readable.{table}()"  # noqa: S608 - names of this file
        )
